"""Simulates the Siemens controller of a Giesen W6A with python-snap7, which shares no code with
this project. The values are constant, except the air, which follows its set value.

Usage: snap7_giesen.py PORT
"""

import struct
import sys
import threading

from snap7.server import Server
from snap7.type import SrvArea

db2, db3 = bytearray(256), bytearray(256)
struct.pack_into(">f", db3, 112, 187.25)
struct.pack_into(">f", db3, 116, 211.5)
for byte, value in ((48, 63), (54, 40), (52, 110), (18, 44)):
    struct.pack_into(">h", db2, byte, value)

server = Server(log=False)
server.register_area(SrvArea.DB, 2, db2)
server.register_area(SrvArea.DB, 3, db3)
server.start(tcp_port=int(sys.argv[1]))
while not threading.Event().wait(0.02):
    if any(db2[16:18]):
        db2[52:54] = db2[16:18]
