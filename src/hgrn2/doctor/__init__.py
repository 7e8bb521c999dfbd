"""`hgrn2 doctor`: is what this machine computes right, and what will be used where it is not?"""
