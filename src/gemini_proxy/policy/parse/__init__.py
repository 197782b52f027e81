"""From the text of a policy to its syntax tree: ``lexer`` makes tokens, ``parser`` makes ``syntax`` nodes."""
