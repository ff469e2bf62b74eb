"""The robot family: the robots of `robopolicy run --robot ...`.

`make(options, context)` connects to a robot and returns it: a `robopolicy.control.robot.Robot`. `robopolicy.testing.robot`
checks this contract. The kind `sim`, our simulated arm, is in `robopolicy.sim.robots`.
"""
