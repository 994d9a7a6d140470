// What the cases of the trainer share.
#pragma once

#include <dirent.h>
#include <stdlib.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <functional>
#include <string>

#include "../../executorch_ops/trainer/files/errors.h"
#include "../../executorch_ops/trainer/files/file.h"
#include "harness.h"

namespace mobizo::trainer {

inline void check_equal(Report& report, const std::string& name, const std::string& got, const std::string& expected) {
  report.check(name, got == expected ? "" : text("expected ", expected, ", got ", got));
}

// That `work` throws an Error which says `part`.
inline void check_error(Report& report, const std::string& name, const std::string& part, const std::function<void()>& work) {
  try {
    work();
    report.check(name, text("no error, expected '", part, "'"));
  } catch (const Error& error) {
    const bool found = std::string(error.what()).find(part) != std::string::npos;
    report.check(name, found ? "" : text("expected '", part, "' in '", error.what(), "'"));
  }
}

// A directory of its own, removed with its files at the end.
class Scratch {
 public:
  Scratch() {
    const char* parent = getenv("TMPDIR");
    path_ = text(parent == nullptr ? "/tmp" : parent, "/trainer-tests-XXXXXX");
    if (mkdtemp(path_.data()) == nullptr) throw std::runtime_error("cannot make " + path_);
  }
  ~Scratch() {
    for (const std::string& name : files()) unlink(file(name).c_str());
    rmdir(path_.c_str());
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  std::string file(const std::string& name) const { return path_ + "/" + name; }
  std::string write(const std::string& name, const std::string& bytes) const {
    std::ofstream(file(name), std::ios::binary) << bytes;
    return file(name);
  }
  std::vector<std::string> files() const {
    std::vector<std::string> names;
    DIR* directory = opendir(path_.c_str());
    while (const dirent* entry = readdir(directory))
      if (entry->d_name[0] != '.' || entry->d_name[1] > '.') names.push_back(entry->d_name);
    closedir(directory);
    return names;
  }

 private:
  std::string path_;
};

}  // namespace mobizo::trainer
