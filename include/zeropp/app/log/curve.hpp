// SPDX-License-Identifier: Apache-2.0
// loss.svg: the losses of a run as a picture that reads on light and dark pages.
#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <zeropp/base/error.hpp>
#include <zeropp/base/format.hpp>

namespace zeropp {

class Curve {
 public:
  /// The losses of a metrics file; lines that are not metrics are passed over.
  static Curve of_metrics(const std::string& path) {
    Curve curve;
    std::ifstream file(path);
    const auto number = [](const std::string& line, std::string_view key, double& value) {
      const auto at = line.find(key);
      return at != std::string::npos &&
             std::from_chars(line.data() + at + key.size(), line.data() + line.size(), value).ec == std::errc{};
    };
    for (std::string line; std::getline(file, line);) {
      double step = 0, loss = 0;
      if (!number(line, "\"step\":", step)) continue;
      if (number(line, "\"loss\":", loss)) curve.add(static_cast<std::int64_t>(step), loss);
      if (number(line, "\"validation_loss\":", loss)) curve.add_validation(static_cast<std::int64_t>(step), loss);
    }
    return curve;
  }

  void add(std::int64_t step, double loss) { training_.emplace_back(static_cast<double>(step), loss); }
  void add_validation(std::int64_t step, double loss) { validation_.emplace_back(static_cast<double>(step), loss); }

  /// Training losses thin, their running mean bold, validation as points; linear axes. Losses that are not finite are
  /// left out.
  std::string svg(const std::string& title) const {
    double x_end = 1, low = 1e300, high = -1e300;
    for (const auto* points : {&training_, &validation_})
      for (auto [x, y] : *points)
        if (std::isfinite(y)) x_end = std::max(x_end, x), low = std::min(low, y), high = std::max(high, y);
    if (low > high) low = 0, high = 1;
    const double step_y = tick(high - low, 6), step_x = tick(x_end, 8);
    low = std::floor(low / step_y) * step_y;
    high = std::max(std::ceil(high / step_y) * step_y, low + step_y);
    const auto x_of = [&](double x) { return left + x / x_end * (width - left - right); };
    const auto y_of = [&](double y) { return top + (high - y) / (high - low) * (height - top - bottom); };

    std::string out = text(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 ", width, " ", height,
        "\" font-family=\"sans-serif\" "
        "font-size=\"13\">\n<style>text{fill:#333}.g{stroke:#8884}.t{stroke:#5b8def66;fill:none}"
        ".m{stroke:#2f6fde;fill:none;stroke-width:2}.v{fill:#e0662f}@media(prefers-color-scheme:dark){text{fill:#ddd}"
        ".m{stroke:#7aa7ff}}</style>\n<text x=\"",
        left, "\" y=\"22\" font-size=\"15\">", xml_text(title), "</text>\n");
    for (double y = low; y <= high + step_y / 2; y += step_y)
      out += text("<line class=\"g\" x1=\"", left, "\" x2=\"", width - right, "\" y1=\"", fixed(y_of(y), 1), "\" y2=\"",
                  fixed(y_of(y), 1), "\"/><text x=\"", left - 8, "\" y=\"", fixed(y_of(y) + 4, 1),
                  "\" text-anchor=\"end\">", fixed(y, step_y < 0.1 ? 2 : 1), "</text>\n");
    for (double x = 0; x <= x_end; x += step_x)
      out += text("<text x=\"", fixed(x_of(x), 1), "\" y=\"", height - bottom + 20, "\" text-anchor=\"middle\">",
                  fixed(x, 0), "</text>\n");
    out += text("<text x=\"", width / 2, "\" y=\"", height - 8, "\" text-anchor=\"middle\">step</text>",
                "<text transform=\"translate(16 ", height / 2,
                ") rotate(-90)\" text-anchor=\"middle\">loss (nats a token)</text>\n");
    std::string thin, bold;
    double mean = 0, weight = 0;
    const double keep = 1 - 1 / std::clamp(static_cast<double>(training_.size()) / 40, 1.0, 50.0);
    for (auto [x, y] : training_) {
      if (!std::isfinite(y)) continue;
      mean = mean * keep + y * (1 - keep);
      weight = weight * keep + (1 - keep);
      thin += text(fixed(x_of(x), 1), ",", fixed(y_of(y), 1), " ");
      bold += text(fixed(x_of(x), 1), ",", fixed(y_of(mean / weight), 1), " ");
    }
    out += text("<polyline class=\"t\" points=\"", thin, "\"/>\n<polyline class=\"m\" points=\"", bold, "\"/>\n");
    for (auto [x, y] : validation_)
      if (std::isfinite(y))
        out += text("<circle class=\"v\" r=\"4\" cx=\"", fixed(x_of(x), 1), "\" cy=\"", fixed(y_of(y), 1), "\"/>\n");
    out += text("<line class=\"m\" x1=\"", width - 190, "\" x2=\"", width - 160, "\" y1=\"46\" y2=\"46\"/><text x=\"",
                width - 152, "\" y=\"50\">training</text><circle class=\"v\" r=\"4\" cx=\"", width - 175,
                "\" cy=\"66\"/><text x=\"", width - 152, "\" y=\"70\">validation</text>\n</svg>\n");
    return out;
  }

 private:
  static constexpr int width = 800, height = 420, left = 64, right = 24, top = 40, bottom = 48;

  /// A round distance that cuts `span` into about `parts`.
  static double tick(double span, int parts) {
    const double raw = std::max(span, 1e-9) / parts, power = std::pow(10, std::floor(std::log10(raw)));
    for (double factor : {1.0, 2.0, 5.0})
      if (raw <= factor * power) return factor * power;
    return 10 * power;
  }

  std::vector<std::pair<double, double>> training_, validation_;
};

}  // namespace zeropp
