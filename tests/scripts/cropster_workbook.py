"""Writes a Cropster export as .xls or .xlsx with libraries that share no code with this project."""

import datetime
import sys

import openpyxl
import xlwt

curve = [[t, 212 + abs(t - 90) * 0.9] for t in range(0, 600, 2)]
sheets = {
    "General": [
        ["Id-Tag", "Lot name", "Profile", "Machine", "Roast date", "Start weight", "Start weight unit"],
        ["PR-7", "Sidamo", "Filter", "L-5", datetime.datetime(2026, 3, 1, 9, 30), 10.5, "LBS"],
    ],
    "Comments": [["Time", "Temp", "Type", "Value"], [480.0, 400.0, "First crack", ""]],
    "Curve - Bean temperature": [["time", "temperature FAHRENHEIT"], *curve],
    "Curve - Gas control": [["time", "PERCENT"], [0.0, 80.0], [300.0, 40.0]],
}

out = sys.argv[1]
if out.endswith(".xls"):
    book = xlwt.Workbook()
    date = xlwt.easyxf(num_format_str="DD.MM.YY HH:MM")
    for name, rows in sheets.items():
        sheet = book.add_sheet(name)
        for y, row in enumerate(rows):
            for x, value in enumerate(row):
                dated = isinstance(value, datetime.datetime)
                sheet.write(y, x, value, *([date] if dated else []))
else:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
book.save(out)
