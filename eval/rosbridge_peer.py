"""A robot arm with a gripper and two cameras as a ROS 1 node; beside a genuine rosbridge server, for a recording.

Needs ROS 1 (rospy, the message packages, pillow), so the interpreter of the ROS installation.
"""

import io

import numpy as np
import rospy
from control_msgs.msg import GripperCommand
from geometry_msgs.msg import Twist
from PIL import Image as Picture
from sensor_msgs.msg import CompressedImage, Image, JointState
from trajectory_msgs.msg import JointTrajectory

HOME = dict(
    zip([f"panda_joint{n}" for n in range(1, 8)], [0.0, -0.1289, 0.0, -2.5263, 0.0, 2.3974, 0.7854], strict=True)
)
FINGERS = ("panda_finger_joint1", "panda_finger_joint2")


def main() -> None:
    """Publish the joints, which are at once where they are commanded, and the images, at 20 Hz and 5 Hz."""
    rospy.init_node("arm")
    joints = HOME | dict.fromkeys(FINGERS, 0.04)

    def follow(message: JointTrajectory) -> None:
        joints.update(zip(message.joint_names, message.points[-1].positions, strict=True))
        assert message.points[-1].time_from_start.to_sec() > 0, "due at once"

    def grip(message: GripperCommand) -> None:
        joints.update(dict.fromkeys(FINGERS, message.position / 2))

    rospy.Subscriber("/joint_trajectory_controller/joint_trajectory", JointTrajectory, follow)
    rospy.Subscriber("/gripper", GripperCommand, grip)
    rospy.Subscriber("/cmd_vel", Twist, lambda message: None)
    states = rospy.Publisher("/joint_states", JointState, queue_size=1)
    raw = rospy.Publisher("/front/image_raw", Image, queue_size=1)
    compressed = rospy.Publisher("/wrist/image_raw/compressed", CompressedImage, queue_size=1)
    rows = np.zeros((4, 32), np.uint8)  # rows of 8 pixels, each padded to 32 bytes
    rows[:, :24] = np.tile([10, 20, 30], 8)
    file = io.BytesIO()
    Picture.fromarray(np.full((4, 8, 3), (30, 20, 10), np.uint8)).save(file, "PNG")
    rate, tick = rospy.Rate(20), 0
    while not rospy.is_shutdown():
        message = JointState(name=[*reversed(joints)], position=[*reversed(joints.values())])
        message.header.stamp = rospy.Time.now()
        states.publish(message)
        if tick % 4 == 0:
            picture = Image(height=4, width=8, step=32, encoding="bgr8", data=rows.tobytes())
            small = CompressedImage(format="rgb8; png compressed bgr8", data=file.getvalue())
            picture.header.stamp = small.header.stamp = message.header.stamp
            raw.publish(picture)
            compressed.publish(small)
        tick += 1
        rate.sleep()


main()
