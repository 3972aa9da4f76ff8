"""Calls functions and collects garbage in known numbers. Waits for a line, works, says "done", and stays until its input ends."""
import gc
import sys


def area(n):
    return n * n


def total():
    return sum([area(n) for n in range(8)])


gc.disable()
print("READY", flush=True)
sys.stdin.readline()
for _ in range(3):
    total()
for _ in range(2):
    gc.collect()
print("done", flush=True)
sys.stdin.read()
