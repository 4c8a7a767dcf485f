"""The HTTP interface: routes, middlewares, request bodies, protocols."""
