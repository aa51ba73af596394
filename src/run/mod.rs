//! `ambit run`: a command in a fresh sandbox that sees its own bounds.
