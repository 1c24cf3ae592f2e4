"""Distribution families: code that knows how a distribution resolves, installs and describes its packages."""
