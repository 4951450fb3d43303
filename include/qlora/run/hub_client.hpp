// qlora/run/hub_client.hpp — what the hub is asked for: a model's files, a file's name by its contents, and its bytes.
// What may not change: a token goes to the endpoint alone, whatever redirects say, and over TLS alone.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/json.hpp"
#include "qlora/net/exchange.hpp"
#include "qlora/net/http.hpp"
#include "qlora/net/percent.hpp"
#include "qlora/net/shown.hpp"
#include "qlora/run/hub_cache.hpp"

namespace qlora {
inline namespace v0 {
namespace run {
namespace detail {

/// What the hub says of a model.
struct HubInfo {
  std::string commit;
  std::string licence;
  std::vector<std::string> files;
};

/// What the hub says of a file.
struct HubFile {
  std::string name;
  std::string etag;  // what its contents are called: SHA-256, or git's name of a small file
  std::int64_t size = 0;
};

/// "https://host:port" of an address.
[[nodiscard]] inline std::string origin_of(std::string_view url) {
  const std::string whole = net::same_address(url);
  const std::size_t host = whole.find("://");
  return host == std::string::npos ? std::string() : whole.substr(0, whole.find('/', host + 3));
}

/// Without quotes and the mark of a weak tag.
[[nodiscard]] inline std::string plain_etag(std::string text) {
  if (text.starts_with("W/")) text.erase(0, 2);
  std::erase(text, '"');
  return text;
}

/// Asks the hub; for one thread.
class HubClient {
 public:
  using Receive = std::function<bool(const net::ExchangeAnswer&, std::string_view)>;

  /// All must outlive this. `stop` ends requests with ErrorKind::interrupted.
  HubClient(const HubPlace& place, const HubModel& model, const std::atomic<bool>& stop)
      : place_(&place), model_(&model), stop_(&stop), connection_(options(place, stop)) {}

  /// The files of the model's revision.
  [[nodiscard]] HubInfo info() {
    const std::string url = concat(place_->endpoint, "/api/models/", model_->name, "/revision/",
                                   net::percent_encoded(model_->revision, {}));
    const std::string where = concat(net::shown_address(url), " of ", model_->name);
    const Json json = parse_json(asked(url, false).body, where, 64, 5'000'000);
    if (!json.is_object()) throw Error(where + ": no JSON object", ErrorKind::network);
    HubInfo info{.commit = json_string(json, "sha", where), .licence = {}, .files = {}};
    if (info.commit.size() != 40 || info.commit.find_first_not_of("0123456789abcdef") != std::string::npos)
      throw Error(where + ": 'sha' is no commit", ErrorKind::network);
    const Json siblings = json_at(json, "siblings", where);
    if (!siblings.is_array()) throw Error(where + ": 'siblings' is no list", ErrorKind::network);
    for (const Json& file : siblings) {
      if (file.is_object()) info.files.push_back(json_string(file, "rfilename", where));
    }
    if (const Json* card = json_find(json, "cardData"); card != nullptr && card->is_object()) {
      const Json* licence = json_find(*card, "license");
      if (licence != nullptr && licence->is_string()) info.licence = excerpt(licence->get<std::string>());
    }
    return info;
  }

  /// What a file of a commit is called and how long it is.
  [[nodiscard]] HubFile file(const std::string& commit, const std::string& name) {
    const net::ExchangeAnswer answer = asked(address(commit, name), true);
    const auto first = [&](const char* a, const char* b) {
      return answer.header(a).empty() ? answer.header(b) : answer.header(a);
    };
    const HubFile file{name, plain_etag(first("x-linked-etag", "etag")),
                       to_size(first("x-linked-size", "content-length"))};
    const std::string said = answer.header("x-repo-commit");
    if (said != commit)
      throw Error(concat(place_->endpoint, ": says that ", name, " is of the commit '", excerpt(said), "', not ",
                         commit, "; is HF_ENDPOINT a server of the hub?"),
                  ErrorKind::network);
    const bool hash = (file.etag.size() == 64 || file.etag.size() == 40) &&
                      file.etag.find_first_not_of("0123456789abcdef") == std::string::npos;
    if (!hash || file.size < 0)
      throw Error(
          concat(place_->endpoint, ": states no hash or no size of ", name, ", so that it could not be checked"),
          ErrorKind::network);
    return file;
  }

  /// One try to get the bytes [begin,end) of a file, or all of it for an empty range. The answer's failure says why it
  /// may be tried again. Throws Error for what no repeat will change.
  [[nodiscard]] net::ExchangeAnswer get(const std::string& commit, const std::string& name, const std::string& range,
                                        const Receive& on) {
    net::ExchangeAnswer answer = follow(address(commit, name), false, range, on, true);
    if (answer.failure.empty() && answer.status != 200 && answer.status != 206) {
      if (answer.status != 416 && !is_passing(answer.status) && !at_home_)
        throw Error(concat("the store of ", model_->name, " answered with status ", answer.status, " for ", name),
                    ErrorKind::network);
      if (answer.status != 416 && !is_passing(answer.status)) refuse(answer);
      answer.failure = concat("status ", answer.status);
    }
    return answer;
  }

  /// The account of the token.
  [[nodiscard]] std::string account() {
    const std::string url = place_->endpoint + "/api/whoami-v2";
    const Json json = parse_json(asked(url, false).body, url);
    return json.is_object() ? excerpt(json_string_or(json, "name", url, "?")) : "?";
  }

  /// Waits before another try; `asked_for` is the header Retry-After.
  void wait(int tries, const std::string& asked_for) const {
    auto pause = place_->transfer.backoff * (1 << std::min(tries, 8));
    if (const auto seconds = net::detail::retry_after("retry-after: " + asked_for))
      pause = std::max<std::chrono::milliseconds>(pause, *seconds);
    const auto until = std::chrono::steady_clock::now() + std::min(pause, place_->transfer.most_wait);
    while (std::chrono::steady_clock::now() < until) {
      if (*stop_) throw Error(model_->name + ": stopped on request", ErrorKind::interrupted);
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }

 private:
  static net::HttpOptions options(const HubPlace& place, const std::atomic<bool>& stop) {
    const bool proxied = !variable("https_proxy").empty() || !variable("HTTPS_PROXY").empty() ||
                         !variable("all_proxy").empty() || !variable("ALL_PROXY").empty();
    net::HttpOptions options;
    options.allow_private = place.own_endpoint || proxied;
    options.connect_timeout = place.transfer.connect;
    options.low_speed_seconds = place.transfer.low_speed_seconds;
    options.stop = [&stop] { return stop.load(); };
    return options;
  }
  static std::int64_t to_size(const std::string& text) {
    if (text.empty() || text.size() > 15 || text.find_first_not_of("0123456789") != std::string::npos) return -1;
    return std::stoll(text);
  }
  static bool is_passing(long status) { return status == 0 || status == 408 || status == 429 || status >= 500; }

  [[nodiscard]] std::string address(const std::string& commit, const std::string& name) const {
    return concat(place_->endpoint, "/", model_->name, "/resolve/", commit, "/", net::percent_encoded(name, "/"));
  }

  /// Follows redirects; with `abroad` false only those that stay at the endpoint, others are the answer.
  net::ExchangeAnswer follow(std::string url, bool head, const std::string& range, const Receive& on, bool abroad) {
    const std::string home = origin_of(place_->endpoint);
    for (int hops = 0; hops < 6; ++hops) {
      at_home_ = origin_of(url) == home;
      net::Exchange request{
          .url = url, .head = head, .headers = {}, .range = range, .ca_file = place_->ca_file, .on = on};
      if (head) request.headers.push_back("Accept-Encoding: identity");
      if (at_home_ && home.starts_with("https:") && !place_->token.empty())
        request.headers.push_back("Authorization: Bearer " + place_->token);
      net::ExchangeAnswer answer = connection_.exchange(request);
      const bool redirect = answer.status >= 301 && answer.status <= 308 && answer.status != 304;
      const std::string to = answer.header("location");
      if (!redirect || to.empty()) return answer;
      std::string next = to.starts_with("//")  ? url.substr(0, url.find("//")) + to
                         : to.starts_with('/') ? origin_of(url) + to
                                               : to;
      if (url.starts_with("https:") && !next.starts_with("https:"))
        throw Error(
            concat(net::shown_address(url), ": leads to an address without TLS, ", excerpt(net::shown_address(next))),
            ErrorKind::network);
      if (!abroad && origin_of(next) != home) return answer;
      url = std::move(next);
    }
    throw Error(net::shown_address(url) + ": too many redirects", ErrorKind::network);
  }

  /// A small answer, asked for again while the failure passes.
  net::ExchangeAnswer asked(const std::string& url, bool head) {
    if (place_->offline)
      throw Error(concat(model_->name.empty() ? std::string("the hub") : model_->name,
                         " is not in the cache, and HF_HUB_OFFLINE forbids to ask for it; unset it, or pull before"),
                  ErrorKind::network);
    for (int tries = 0;; ++tries) {
      net::ExchangeAnswer answer = follow(url, head, {}, {}, false);
      const bool moved = head && answer.status >= 301 && answer.status <= 308;
      heard_ = heard_ || answer.status != 0;
      if (moved || answer.status == 200) return answer;
      if (!is_passing(answer.status)) refuse(answer);
      if (tries + 1 >= (heard_ ? place_->transfer.tries : place_->transfer.first_tries))
        throw Error(concat(net::shown_address(url), ": ",
                           answer.failure.empty() ? concat("status ", answer.status) : answer.failure, " (", tries + 1,
                           tries == 0 ? " try)" : " tries)"),
                    ErrorKind::network);
      wait(tries, answer.header("retry-after"));
    }
  }

  /// Throws what a status of failure means for the user.
  [[noreturn]] void refuse(const net::ExchangeAnswer& answer) const {
    const std::string code = answer.header("x-error-code");
    const std::string page = concat(place_->endpoint, "/", model_->name);
    const bool plain = !place_->endpoint.starts_with("https:");
    const std::string token = plain ? "a token is not sent without TLS; give HF_ENDPOINT as https://"
                              : place_->token.empty()
                                  ? "log in with `qlora login`, or set HF_TOKEN"
                                  : "the token is of an account that may not read it, or has expired";
    std::string text = concat(page, ": status ", answer.status);
    if (model_->name.empty()) {
      text = concat(place_->endpoint, ": does not know this token (status ", answer.status, ")");
    } else if (code == "GatedRepo" || (answer.status == 403 && code != "RepoNotFound")) {
      text = concat(model_->name, " is gated: accept its licence with your account at ", page, ", then `qlora accept ",
                    model_->name, "`; ", token);
    } else if (code == "RevisionNotFound") {
      text = concat(model_->name, " has no revision '", model_->revision, "'; see ", page);
    } else if (code == "EntryNotFound") {
      text = concat(model_->name, ": a file that it lists is not there; see ", page);
    } else if (answer.status == 401 || answer.status == 404) {
      text = concat("no folder of this name, and the hub has no model ", model_->name, ", or it is private (status ",
                    answer.status, "); ", token);
    }
    throw Error(text, ErrorKind::network);
  }

  const HubPlace* place_;
  const HubModel* model_;
  const std::atomic<bool>* stop_;
  net::Connection connection_;
  bool at_home_ = true;  // whether the endpoint itself gave the last answer
  bool heard_ = false;   // whether there was any answer
};

}  // namespace detail
}  // namespace run
}  // namespace v0
}  // namespace qlora
