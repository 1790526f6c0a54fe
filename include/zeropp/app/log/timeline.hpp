// SPDX-License-Identifier: Apache-2.0
// A trace as a picture: a row for each rank, its passes with the numbers of their micro-batches. It reads on light and
// dark pages.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>

#include <zeropp/base/error.hpp>
#include <zeropp/base/trace.hpp>
#include <zeropp/base/format.hpp>

namespace zeropp {

namespace detail {

/// How each kind of span is drawn: class, legend, and whether it is drawn at all.
struct TimelineStyle {
  SpanKind kind;
  std::string_view css, legend;
};
inline constexpr std::array<TimelineStyle, 5> timeline_styles{{{SpanKind::forward, "f", "forward"},
                                                               {SpanKind::backward, "b", "backward"},
                                                               {SpanKind::backward_input, "i", "backward for input"},
                                                               {SpanKind::backward_weight, "w", "backward for weights"},
                                                               {SpanKind::optimizer, "o", "optimizer"}}};

}  // namespace detail

/// SVG of the passes and optimizer steps of a trace; a pass of a stage's second chunk (and of every other after it) is
/// framed. Passes narrower than their number are drawn without it.
inline std::string timeline_svg(const Trace& trace, const std::string& title) {
  using detail::timeline_styles;
  constexpr double width = 1000, left = 64, right = 12, top = 58, row = 30, gap = 6;
  double begin = 1e300, end = -1e300;
  std::array<bool, span_kinds.size()> seen{};
  int chunks = 1;
  const auto style_of = [](const Span& span) {
    return std::find_if(timeline_styles.begin(), timeline_styles.end(),
                        [&](const auto& style) { return style.kind == span.kind; });
  };
  for (const auto* recorder : trace.recorders())
    for (const auto& span : recorder->spans()) {
      if (style_of(span) == timeline_styles.end()) continue;
      begin = std::min(begin, span.begin), end = std::max(end, span.end);
      seen[static_cast<std::size_t>(span.kind)] = true;
      chunks = std::max(chunks, span.chunk + 1);
    }
  if (end <= begin) begin = 0, end = 1;
  const double scale = (width - left - right) / (end - begin);
  const double height = top + (row + gap) * static_cast<double>(trace.recorders().size()) + 34;

  std::string out =
      text("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 ", fixed(width, 0), " ", fixed(height, 0),
           "\" font-family=\"sans-serif\" font-size=\"12\">\n<style>text{fill:#57606a}.n{fill:#fff;text-anchor:middle}"
           ".f{fill:#3b76d6}.b{fill:#2f8f57}.i{fill:#2f8f57}.w{fill:#a0653a}.o{fill:#888}.e{fill:#8882}"
           ".c{stroke:#f2c230;stroke-width:2}@media(prefers-color-scheme:dark){text{fill:#c9d1d9}}</style>\n"
           "<text x=\"8\" y=\"20\" font-size=\"15\">",
           xml_text(title), "</text>\n");
  double x = left;
  for (const auto& style : timeline_styles) {
    if (!seen[static_cast<std::size_t>(style.kind)]) continue;
    out +=
        text("<rect class=\"", style.css, "\" x=\"", fixed(x, 0), "\" y=\"32\" width=\"14\" height=\"14\"/><text x=\"",
             fixed(x + 19, 0), "\" y=\"44\">", style.legend, "</text>\n");
    x += 40 + 6.6 * static_cast<double>(style.legend.size());
  }
  if (chunks > 1)
    out += text("<rect class=\"e c\" x=\"", fixed(x, 0), "\" y=\"33\" width=\"12\" height=\"12\"/><text x=\"",
                fixed(x + 19, 0), "\" y=\"44\">of ", chunks > 2 ? "every" : "the", " second chunk</text>\n");

  double y = top;
  for (const auto* recorder : trace.recorders()) {
    out += text("<text x=\"8\" y=\"", fixed(y + row / 2 + 4, 0), "\">rank ", recorder->rank(),
                "</text><rect class=\"e\" x=\"", fixed(left, 0), "\" y=\"", fixed(y, 0), "\" width=\"",
                fixed(width - left - right, 0), "\" height=\"", fixed(row, 0), "\"/>\n");
    for (const auto& span : recorder->spans()) {
      const auto style = style_of(span);
      if (style == timeline_styles.end()) continue;
      const double from = left + (span.begin - begin) * scale,
                   wide = std::max(0.5, (span.end - span.begin) * scale - 0.6);
      const bool framed = span.chunk % 2 == 1 && wide > 4;
      const double inset = framed ? 1 : 0;
      out += text("<rect class=\"", style->css, framed ? " c" : "", "\" x=\"", fixed(from + inset, 1), "\" y=\"",
                  fixed(y + inset, 0), "\" width=\"", fixed(wide - 2 * inset, 1), "\" height=\"",
                  fixed(row - 2 * inset, 0), "\"/>");
      const auto number = span.micro_batch < 0 ? std::string() : std::to_string(span.micro_batch + 1);
      if (!number.empty() && wide > 3 + 7 * static_cast<double>(number.size()))
        out += text("<text class=\"n\" x=\"", fixed(from + wide / 2, 1), "\" y=\"", fixed(y + row / 2 + 4, 0), "\">",
                    number, "</text>");
      out += '\n';
    }
    y += row + gap;
  }
  const double seconds = end - begin;
  const auto time_text = [&](double part) {
    return seconds >= 1 ? fixed(part * seconds, 2) + " s" : fixed(part * seconds * 1e3, 1) + " ms";
  };
  for (int i = 0; i <= 4; ++i)
    out += text("<text x=\"", fixed(left + (width - left - right) * i / 4, 0), "\" y=\"", fixed(y + 16, 0),
                "\" text-anchor=\"",
                i == 0   ? "start"
                : i == 4 ? "end"
                         : "middle",
                "\">", time_text(i / 4.0), "</text>\n");
  return out + "</svg>\n";
}

}  // namespace zeropp
