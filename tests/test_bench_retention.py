from bench.retention import measure, report


async def test_the_bench_of_retention_deletes_while_it_writes(database_url: str) -> None:
    figures = await measure(database_url, 300, alone=0.2)
    assert figures.bytes_each["all"] > 1_000 and figures.longest_alone > 0 and figures.longest_meanwhile > 0
    assert (figures.log_bytes is None) == database_url.startswith("sqlite")
    assert report(figures).startswith("300 traces of one day\n")
