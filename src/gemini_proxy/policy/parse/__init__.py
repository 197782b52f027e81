"""Turn the text of a policy into its syntax tree: ``lexer`` makes tokens, ``parser`` makes ``syntax`` nodes."""
