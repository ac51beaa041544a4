"""A storefront: products over HTTP, read through a cache that every instance keeps right."""
