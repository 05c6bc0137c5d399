"""The modules a transformer is made of: weights and shapes. The arithmetic is in `kernels/`.

Plain callables, not nn.Module: nothing here is trained, moved or saved, and Module's call and attribute hooks cost half
a millisecond a step with 30 layers.
"""
