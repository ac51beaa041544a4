"""A catalogue of products, and orders of them."""
