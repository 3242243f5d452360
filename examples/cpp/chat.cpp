// Answers lines with a chatbot that `python -m chatbot export --out bot.pt` wrote. Needs libtorch, no Python.
//
//   chat bot.pt [threads]        lines from standard input, a reply and its latency for each
//
// A line is normalised as the tutorial does, for ASCII: letters to lower case, .!? words of their own, everything
// else a space. Letters with accents, which the Python side strips of them, are taken for a space here.

#include <ATen/Parallel.h>
#include <torch/script.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace {

constexpr int64_t kEos = 2, kFirstWord = 3;  // PAD is 0, SOS 1
constexpr int64_t kReplyTokens = 10;                   // as chatbot chat has it
constexpr int kWarmUpCalls = 3;                        // TorchScript profiles its first calls and compiles
const char kVocabulary[] = "vocabulary.json";

// A JSON list of strings. The words hold ASCII letters and .!? alone, so an escape is an error like any other.
std::vector<std::string> read_words(const std::string& json) {
  std::vector<std::string> words;
  size_t at = json.find('[');
  if (at == std::string::npos) throw std::runtime_error("it holds no vocabulary.json; make it with chatbot export");
  while ((at = json.find('"', at + 1)) != std::string::npos) {
    const size_t end = json.find('"', at + 1);
    if (end == std::string::npos) throw std::runtime_error("its vocabulary.json is cut off");
    words.push_back(json.substr(at + 1, end - at - 1));
    if (words.back().find('\\') != std::string::npos) throw std::runtime_error("its vocabulary.json holds escapes");
    at = end;
  }
  if (words.empty()) throw std::runtime_error("its vocabulary.json holds no words");
  return words;
}

std::vector<std::string> normalise(const std::string& line) {
  std::string spaced;
  for (const char c : line) {
    if (c >= 'A' && c <= 'Z') {
      spaced += static_cast<char>(c - 'A' + 'a');
    } else if (c >= 'a' && c <= 'z') {
      spaced += c;
    } else if (c == '.' || c == '!' || c == '?') {
      spaced += {' ', c, ' '};
    } else {
      spaced += ' ';
    }
  }
  std::istringstream stream(spaced);
  std::vector<std::string> words;
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

class Chatbot {
 public:
  explicit Chatbot(const std::string& path) {
    torch::jit::ExtraFilesMap extra{{kVocabulary, ""}};
    search_ = torch::jit::load(path, torch::kCPU, extra);
    search_.eval();
    words_ = read_words(extra[kVocabulary]);
    for (size_t i = 0; i < words_.size(); ++i) tokens_[words_[i]] = static_cast<int64_t>(i) + kFirstWord;
    for (int i = 0; i < kWarmUpCalls; ++i) search({kEos});
  }

  // Prints one reply; words that it does not know go to standard error.
  void answer(const std::string& line) {
    std::vector<int64_t> prompt;
    std::string unknown;
    for (const std::string& word : normalise(line)) {
      const auto found = tokens_.find(word);
      if (found != tokens_.end()) {
        prompt.push_back(found->second);
      } else {
        unknown += (unknown.empty() ? "" : ", ") + word;
      }
    }
    if (!unknown.empty()) std::cerr << "(unknown: " << unknown << ")\n";
    if (prompt.empty()) {
      std::cout << "Bot: ..." << std::endl;
      return;
    }
    prompt.push_back(kEos);
    const auto start = std::chrono::steady_clock::now();
    const torch::Tensor tokens = search(prompt);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    const std::string reply = text(tokens);
    std::printf("Bot: %s  (%.1f ms)\n", reply.empty() ? "..." : reply.c_str(), took.count());
    std::fflush(stdout);
  }

 private:
  torch::Tensor search(std::vector<int64_t> prompt) {
    const c10::InferenceMode guard;
    const auto length = static_cast<int64_t>(prompt.size());
    const torch::Tensor prompts = torch::from_blob(prompt.data(), {1, length}, torch::kLong).clone();
    const torch::Tensor lengths = torch::full({1}, length, torch::kLong);
    return search_.forward({prompts, lengths, kReplyTokens}).toTuple()->elements()[0].toTensor();
  }

  // The words up to the first EOS; .!? stand next to the word before them.
  std::string text(const torch::Tensor& tokens) const {
    std::string reply;
    for (int64_t i = 0; i < tokens.size(1); ++i) {
      const auto token = tokens[0][i].item<int64_t>();
      if (token == kEos) break;
      if (token < kFirstWord) continue;
      const std::string& word = words_.at(static_cast<size_t>(token - kFirstWord));
      const bool mark = word == "." || word == "!" || word == "?";
      reply += (reply.empty() || mark ? "" : " ") + word;
    }
    return reply;
  }

  torch::jit::Module search_;
  std::vector<std::string> words_;
  std::unordered_map<std::string, int64_t> tokens_;
};

// The first line, without the source locations that libtorch adds.
std::string first_line(const std::exception& error) {
  const auto* from_torch = dynamic_cast<const c10::Error*>(&error);
  const std::string text = from_torch ? from_torch->what_without_backtrace() : error.what();
  return text.substr(0, text.find('\n'));
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2 || count > 3) {
    std::cerr << "usage: chat bot.pt [threads]   (python -m chatbot export --out bot.pt)\n";
    return 2;
  }
  try {
    at::set_num_threads(count == 3 ? std::max(1, std::stoi(arguments[2])) : 1);
    Chatbot chatbot(arguments[1]);
    for (std::string line; std::getline(std::cin, line) && line != "q" && line != "quit";) {
      if (line.find_first_not_of(" \t\r") != std::string::npos) chatbot.answer(line);
    }
  } catch (const std::exception& error) {
    std::cerr << "chat: " << arguments[1] << ": " << first_line(error) << "\n";
    return 1;
  }
  return 0;
}
