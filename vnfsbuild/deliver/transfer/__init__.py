"""Moving: versions leave a store and enter one, as files (`export`, `importer`) or through registries (`registry`).

Those three modules, and `remote` for the names of things in registries, are the face. Whatever enters, by either way,
passes `intake`; the form of a file is `layout`'s, the wire is `oci_client`'s and `transport`'s. Nothing is imported
here: a file needs no HTTP client.
"""
