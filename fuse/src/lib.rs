//! The overlay: `/proc` and `/sys` files rendered for the container that reads them.
