"""The check of a domain, which bijections share with univariate maps."""

from flowkit.domain import check_domain

__all__ = ["check_domain"]
