"""Print the table, and how many fields there are of each class: ``python -m tests.fields``."""

from tests.fields.table import counts, openai_rows, rows


def main() -> None:
    table = [*rows(), *openai_rows()]
    for row in table:
        print(f"{row.direction}\t{row.path}\t{row.found}")
    print(counts(table))


main()
