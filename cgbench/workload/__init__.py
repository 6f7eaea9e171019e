"""What is decoded: prompts, their files and sets, chat templates, random tokens."""
