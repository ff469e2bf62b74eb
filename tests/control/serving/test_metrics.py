"""The page that Prometheus reads."""

import re

from robopolicy.control.serving.metrics import Metrics


def test_the_page_is_prometheus_text_format():
    """Guards against: one malformed line, for which Prometheus drops the whole page."""
    metrics = Metrics()
    metrics.count("requests_total", 3)
    metrics.observe("infer_seconds", 0.004)
    metrics.observe("infer_seconds", 99.0)
    page = metrics.text()
    line = re.compile(r'(# TYPE \w+ (counter|gauge|histogram)|\w+(\{le="[^"]+"\})? [-+.0-9e]+)')
    assert all(line.fullmatch(text) for text in page.splitlines())
    assert "robopolicy_requests_total 3" in page
    assert 'robopolicy_infer_seconds_bucket{le="0.002"} 0' in page
    assert 'robopolicy_infer_seconds_bucket{le="0.005"} 1' in page
    assert 'robopolicy_infer_seconds_bucket{le="+Inf"} 2' in page
    assert "robopolicy_infer_seconds_count 2" in page
