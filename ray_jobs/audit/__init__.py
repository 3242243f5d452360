"""How often the tool is wrong: identical programs, known differences, planted mistakes."""
