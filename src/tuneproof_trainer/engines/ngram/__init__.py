"""The ngram engine: an interpolated Kneser-Ney word model that trains in under a second.

It really learns and its losses are real, but it is a model for trying the loop, not for users.
Data flows `tokens` → `kneser_ney` and `spelling` → `mixture` → `training` → `engine`; `corpus`
makes the text of the base model, `prompts` reads what a prompt asks for.
"""
