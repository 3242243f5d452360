"""Where the time of one call goes: its phases, its operators, its share of Python."""
