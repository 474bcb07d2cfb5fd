"""The one exception of our own."""


class BundleError(ValueError):
    """A bundle that is missing, damaged, made by a newer version, or not a bundle at all."""
