"""The robot family: the robots of `robopolicy run --robot ...`.

`make(options, context)` connects to a robot and returns it: a `robopolicy.control.robot.Robot`. `robopolicy.testing.robot`
checks what a robot promises. The kind `sim`, our simulated arm, is in `robopolicy.sim.robots`.
"""
