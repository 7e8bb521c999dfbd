"""Answering many at once: an engine over states of constant size, prefixes that are read once, and HTTP around them.

settings   limits of all of it, without torch
slots      states side by side, one token per step in a few fixed widths
engine     who is read and who is written next; prefix: states of prompts that came before
driver     the engine in a thread of its own, heard from asyncio
app        the routes; run: the process around them
"""
