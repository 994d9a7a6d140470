// The commands of mobizo_runner. Each parses what follows its name, and throws Error.
#pragma once

namespace mobizo::trainer {

void train_command(int argc, char** argv);
void evaluate_command(int argc, char** argv);
void replay_command(int argc, char** argv);
void info_command(int argc, char** argv);
void tokenize_command(int argc, char** argv);
void tokens_command(int argc, char** argv);
void generate_command(int argc, char** argv);
void chat_command(int argc, char** argv);

}  // namespace mobizo::trainer
