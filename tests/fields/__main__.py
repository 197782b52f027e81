"""Print the table, and how many fields there are of each class: ``python -m tests.fields``."""

from tests.fields.table import counts, rows


def main() -> None:
    table = rows()
    for row in table:
        print(f"{row.direction}\t{row.path}\t{row.found}")
    print(counts(table))


main()
