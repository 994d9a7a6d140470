/* Tunes the adapter of a program on a data set and scores it before and after. Ctrl-C ends the run after its step; started
 * again, it goes on from the journal.
 *
 *   train PROGRAM DATASET ADAPTER JOURNAL [STEPS] */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "mobizo.h"

static volatile sig_atomic_t interrupted = 0;

static void interrupt(int number) {
  (void)number;
  interrupted = 1;
}

/* Prints what went wrong; the exit status of the program. */
static int failed(const char* what, mobizo_status status) {
  fprintf(stderr, "%s: %s: %s\n", what, mobizo_status_name(status), mobizo_last_message());
  return 1;
}

static int32_t on_step(const mobizo_step* step, void* user) {
  (void)user;
  printf("step %" PRId64 "/%" PRId64 ": loss %.4f, %.0f ms%s\n", step->step + 1, step->steps, step->loss, 1e3 * step->seconds,
         step->skipped ? ", skipped" : "");
  fflush(stdout);
  return interrupted; /* anything but 0 ends the run */
}

static int32_t on_evaluation(const mobizo_validation* validation, void* user) {
  (void)user;
  printf("after %" PRId64 " steps: validation loss %.4f, accuracy %.1f %%\n", validation->step, validation->loss,
         100 * validation->accuracy);
  return interrupted;
}

static void on_warning(const char* sentence, void* user) {
  (void)user;
  fprintf(stderr, "%s\n", sentence);
}

static mobizo_status score(mobizo_program* program, const char* dataset) {
  mobizo_evaluation found = {.size = sizeof found};
  const mobizo_status status = mobizo_evaluate(program, dataset, "test", 0, &found, NULL, NULL);
  if (status == MOBIZO_OK)
    printf("%" PRId64 " rows: loss %.4f, accuracy %.1f %%\n", found.rows, found.loss, 100 * found.accuracy);
  return status;
}

static int tune(mobizo_program* program, char** files, int64_t steps) {
  const char *dataset = files[0], *adapter = files[1];
  mobizo_train_options options;
  mobizo_callbacks callbacks = {sizeof callbacks, NULL, on_step, on_evaluation, on_warning};
  mobizo_train_result result = {.size = sizeof result};
  mobizo_status status;

  if ((status = score(program, dataset)) != MOBIZO_OK) return failed(dataset, status);
  mobizo_train_options_init(&options, sizeof options);
  options.journal = files[2];
  options.resume = 1;
  if (steps > 0) options.steps = steps;
  status = mobizo_train(program, dataset, &options, &callbacks, &result);
  if (status == MOBIZO_CANCELLED) {
    printf("interrupted after %" PRId64 " steps; start again to go on\n", result.steps);
    return 0;
  }
  if (status != MOBIZO_OK) return failed("training", status);
  if ((status = mobizo_adapter_save(program, adapter)) != MOBIZO_OK) return failed(adapter, status);
  printf("kept the adapter of step %" PRId64 ": %s\n", result.best_step, adapter);
  if ((status = score(program, dataset)) != MOBIZO_OK) return failed(dataset, status);
  return 0;
}

int main(int argc, char** argv) {
  mobizo_program* program = NULL;
  mobizo_status status;
  int result;

  if (argc < 5 || argc > 6) {
    fprintf(stderr, "usage: train PROGRAM DATASET ADAPTER JOURNAL [STEPS]\n");
    return 2;
  }
  signal(SIGINT, interrupt);
  if ((status = mobizo_program_open(argv[1], 0, &program)) != MOBIZO_OK) return failed(argv[1], status);
  result = tune(program, argv + 2, argc == 6 ? strtoll(argv[5], NULL, 10) : 0);
  mobizo_program_close(program);
  return result;
}
