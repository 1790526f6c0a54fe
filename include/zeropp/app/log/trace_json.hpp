// SPDX-License-Identifier: Apache-2.0
// A trace as a file of trace events, which https://ui.perfetto.dev and chrome://tracing open: one process a rank, with
// a thread for passes, layers and the optimizer, and one for communication.
// Format: "Trace Event Format", https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
#pragma once

#include <string>

#include <zeropp/base/error.hpp>
#include <zeropp/base/trace.hpp>
#include <zeropp/base/format.hpp>

namespace zeropp {

namespace detail {

/// As the inside of a JSON string.
inline std::string json_text(const std::string& plain) {
  std::string out;
  for (char c : plain) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out;
}

}  // namespace detail

/// One event a line, in microseconds.
inline std::string trace_json(const Trace& trace) {
  std::string out = "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n";
  const char* between = "";
  for (const auto* recorder : trace.recorders()) {
    const int rank = recorder->rank();
    const auto named = [&](const char* what, int thread, const std::string& name) {
      out += text(between, "{\"ph\": \"M\", \"pid\": ", rank, ", \"tid\": ", thread, ", \"name\": \"", what,
                  "\", \"args\": {\"name\": \"", name, "\"}}");
      between = ",\n";
    };
    named("process_name", 0, text("rank ", rank));
    named("thread_name", 0, "compute");
    named("thread_name", 1, "communication");
    for (const auto& span : recorder->spans()) {
      const bool communicates = span.kind == SpanKind::collective;
      out += text(between, "{\"ph\": \"X\", \"pid\": ", rank, ", \"tid\": ", communicates ? 1 : 0, ", \"name\": \"",
                  detail::json_text(span.name.empty() ? std::string(name_of(span.kind)) : span.name), "\", \"cat\": \"",
                  name_of(span.kind), "\", \"ts\": ", fixed(span.begin * 1e6, 3),
                  ", \"dur\": ", fixed((span.end - span.begin) * 1e6, 3), ", \"args\": {");
      if (span.micro_batch >= 0)
        out += text("\"micro_batch\": ", span.micro_batch, ", \"chunk\": ", span.chunk);
      else if (communicates)
        out += text("\"axis\": \"", detail::json_text(span.axis), "\", \"bytes\": ", span.bytes);
      out += "}}";
    }
  }
  return out + "\n]}\n";
}

}  // namespace zeropp
