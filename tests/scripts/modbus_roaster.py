"""Serves recorded roasts as a Modbus TCP machine: each poll returns the next recorded sample.

Usage: modbus_roaster.py PORT SERVED RECORDING...

Holding registers: 0-1 BT, 2-3 ET (IEEE 754 single, high word first, NaN = no reading), 4 the
state of the machine: 0 idle, 1 charged, 2 dropped. SERVED receives one JSON line per sample that
was returned: the samples that must arrive, written by code that the agent does not share.
"""

import ast
import asyncio
import csv
import json
import struct
import sys

from pymodbus.datastore import ModbusDeviceContext, ModbusSequentialDataBlock, ModbusServerContext
from pymodbus.server import StartAsyncTcpServer


def read_alog(path):
    with open(path, encoding="utf-8") as file:
        roast = ast.literal_eval(file.read())
    marks = roast["timeindex"]
    charge = marks[0] if marks[0] >= 0 else None
    drop = marks[6] or None
    for i, (et, bt) in enumerate(zip(roast["temp1"], roast["temp2"])):
        state = 0
        if charge is not None and i >= charge:
            state = 1
        if drop is not None and i >= drop:
            state = 2
        yield bt, et, state


def read_csv(path):
    state = 0
    with open(path, encoding="utf-8-sig") as file:
        for row in csv.DictReader(file):
            if row["beans_added"] == "True" and state == 0:
                state = 1
            if row["beans_dropped"] == "True":
                state = 2
            yield float(row["bean_temp_c"]), float(row["env_temp_c"]), state


def samples(paths):
    for path in paths:
        recording = list(read_csv(path) if path.endswith(".csv") else read_alog(path))
        # The machine idles before each roast, so that its state can change.
        idle = (recording[0][0], recording[0][1], 0)
        yield from [idle] * 5
        yield from recording


def words(value):
    value = float("nan") if value == -1 else value
    return struct.unpack(">HH", struct.pack(">f", value))


class Machine(ModbusSequentialDataBlock):
    def __init__(self, paths, served):
        super().__init__(0, [0] * 16)
        self.samples = samples(paths)
        self.served = served
        self.current = None
        self.again = True

    def connected(self, is_up):
        # A client that reconnects did not receive its last answer: repeat the sample.
        if is_up:
            self.again = True

    def getValues(self, address, count=1):
        if self.current is None or not self.again:
            following = next(self.samples, None)
            if following is None:
                self.note()
                self.served.close()
                sys.exit(0)
            if self.current is not None:
                self.note()
            self.current = following
        self.again = False
        bt, et, state = self.current
        registers = [*words(bt), *words(et), state]
        return registers[address - 1 : address - 1 + count]

    def note(self):
        bt, et, state = self.current
        single = lambda v: None if v == -1 else struct.unpack(">f", struct.pack(">f", v))[0]
        self.served.write(json.dumps([single(bt), single(et), state]) + "\n")
        self.served.flush()


async def main():
    port, served, paths = int(sys.argv[1]), open(sys.argv[2], "w", encoding="utf-8"), sys.argv[3:]
    machine = Machine(paths, served)
    context = ModbusServerContext(ModbusDeviceContext(hr=machine), single=True)
    await StartAsyncTcpServer(context, address=("127.0.0.1", port), trace_connect=machine.connected)


asyncio.run(main())
