"""Make what a run decodes: prompts, their files and sets, chat templates, random tokens."""
