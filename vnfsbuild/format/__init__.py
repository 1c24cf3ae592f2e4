"""Image and archive formats: squashfs layers, cpio initrds, PAX tar."""
