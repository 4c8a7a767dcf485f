"""The model card as an HTML page: what a person decides by, then the sections of Mitchell et al. 2019, folded."""

from model.card_page.markup import Block, Picture, Table
from model.card_page.page import STYLE, card_page

__all__ = ["STYLE", "Block", "Picture", "Table", "card_page"]
