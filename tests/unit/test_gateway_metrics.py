"""Many processes' pages of metrics as one."""

import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from maas_gateway.api.envoy_statistics import COUNTED, ENVOY_STATISTICS, GRPC_TAGS, readable
from maas_gateway.domain.exposition import ExpositionInvalid, merge, parse


def page(value: float) -> str:
    registry = CollectorRegistry()
    Counter("maas_calls", "Calls.", ["method"], registry=registry).labels('a "quoted" \\ one,process="x"\n').inc(value)
    Gauge("maas_running", "Running.", registry=registry).set(value)
    histogram = Histogram("maas_seconds", "Seconds.", ["method"], buckets=(0.1, 1), registry=registry)
    histogram.labels("a").observe(value)
    Summary("maas_bytes", "Bytes.", registry=registry).observe(value)
    return generate_latest(registry).decode()


def test_each_family_is_there_once_with_the_samples_of_all() -> None:
    merged = merge([parse(page(0.5), "one"), parse(page(2), "two")])
    lines = merged.splitlines()
    assert lines.count("# TYPE maas_seconds histogram") == 1
    assert lines.count("# HELP maas_seconds Seconds.") == 1
    start = lines.index("# TYPE maas_seconds histogram")
    buckets = [line for line in lines[start:] if line.startswith("maas_seconds_bucket")]
    assert buckets[0] == 'maas_seconds_bucket{process="one",le="0.1",method="a"} 0.0'
    assert len(buckets) == 6
    assert 'maas_running{process="two"} 2.0' in lines


def test_a_merged_page_says_the_same_numbers() -> None:
    families = {family.name: family for family in text_string_to_metric_families(merge([parse(page(0.5), "one")]))}
    (calls,) = families["maas_calls"].samples
    assert calls.value == 0.5
    assert calls.labels == {"process": "one", "method": 'a "quoted" \\ one,process="x"\n'}
    assert {sample.name for sample in families["maas_seconds"].samples} == {
        "maas_seconds_bucket",
        "maas_seconds_sum",
        "maas_seconds_count",
    }


def test_a_process_label_of_its_own_is_kept_under_another_name() -> None:
    (family,) = parse('a{process="inner",b="1"} 1\na{b="1", process="inner"} 2\n', "outer")
    assert family.samples == [
        'a{process="outer",exported_process="inner",b="1"} 1',
        'a{process="outer",b="1",exported_process="inner"} 2',
    ]


def test_where_types_disagree_the_first_one_counts() -> None:
    one, two = parse("# TYPE a counter\na 1\n", "one"), parse("# TYPE a gauge\na 2\n", "two")
    assert merge([one, two]) == '# TYPE a counter\na{process="one"} 1\n'


@pytest.mark.parametrize("text", ["<html>", "a{b=1} 2", 'a{b="1} 2', "a", 'a{b="1"}2'])
def test_what_is_not_a_metric_is_refused(text: str) -> None:
    with pytest.raises(ExpositionInvalid):
        parse(f"# TYPE a gauge\na 1\n{text}\n", "x")


def test_only_a_newline_ends_a_line() -> None:
    (family,) = parse('a{b="\u2028\x0b\x85"} 1\n', "x")
    assert family.samples == ['a{process="x",b="\u2028\x0b\x85"} 1']


@given(st.text())
def test_any_text_is_a_page_or_refused(text: str) -> None:
    try:
        families = parse(text, "x")
    except ExpositionInvalid:
        return
    merge([families])


ENVOY_PAGE = """# TYPE envoy_http_downstream_rq_xx counter
envoy_http_downstream_rq_xx{envoy_response_code_class="2",envoy_http_conn_manager_prefix="public"} 7
# TYPE envoy_cluster_upstream_rq_total counter
envoy_cluster_upstream_rq_total{envoy_cluster_name="registry"} 3
# TYPE envoy_cluster_something_else counter
envoy_cluster_something_else{envoy_cluster_name="registry"} 3
# TYPE envoy_server_live gauge
envoy_server_live{} 1
# TYPE envoy_http_downstream_rq_time histogram
envoy_http_downstream_rq_time_bucket{le="1"} 1
envoy_http_downstream_rq_time_bucket{le="+Inf"} 2
envoy_http_downstream_rq_time_sum{} 3.5
envoy_http_downstream_rq_time_count{} 2

"""


def test_envoys_page_is_cut_to_what_is_kept_and_made_to_pass_the_checker() -> None:
    text = merge([parse(readable(ENVOY_PAGE), "envoy")])
    assert 'envoy_http_downstream_rq_xx_total{process="envoy",envoy_response_code_class="2"' in text
    assert 'envoy_cluster_upstream_rq_total{process="envoy",envoy_cluster_name="registry"} 3' in text
    assert 'envoy_server_live{process="envoy"} 1' in text
    assert 'envoy_http_downstream_rq_time_bucket{process="envoy",le="+Inf"} 2' in text
    assert "something_else" not in text
    if promtool := shutil.which("promtool"):
        checked = subprocess.run([promtool, "check", "metrics"], input=text.encode(), capture_output=True, check=False)
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_no_two_of_envoys_statistics_end_up_under_one_name() -> None:
    names = [statistic.name.removesuffix("_total") for statistic in ENVOY_STATISTICS]
    assert len(set(names)) == len(names)


def test_grpc_calls_are_told_apart_by_service_method_and_status() -> None:
    stat = "cluster.registry.grpc.maas.registry.v1.RegistryService.GetModel.5"
    values = {}
    for tag, pattern in GRPC_TAGS.items():
        match = re.search(pattern, stat)
        assert match is not None
        values[tag] = match[2]
    assert values == {
        "grpc_service": "maas.registry.v1.RegistryService",
        "grpc_method": "GetModel",
        "grpc_status": "5",
    }
    assert re.fullmatch(COUNTED, stat)
    assert not re.fullmatch(COUNTED, "cluster.registry.upstream_cx_http1_total")
