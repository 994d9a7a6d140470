/* The native trainer from C, and from whatever calls C: fine-tuning by forward passes, inside ExecuTorch.
 *
 *   mobizo_program *program = NULL;
 *   if (mobizo_program_open("program.pte", 0, &program) != MOBIZO_OK) puts(mobizo_last_message());
 *   mobizo_train(program, "dataset.safetensors", NULL, NULL, NULL);
 *   mobizo_adapter_save(program, "adapter.safetensors");
 *   mobizo_program_close(program);
 *
 * Every function that can fail returns a status. Of the last call of a thread that failed, mobizo_last_message() has a
 * sentence, which names the argument or the file, what was expected and what came. Nothing has been changed by then, unless
 * the function says so. No function ends the process over a bad argument, and no C++ exception leaves one.
 *
 * Texts and names of files are UTF-8 and end with a NUL, but where a length is given. What a function allocates, it says so,
 * is released with mobizo_free(). Numbers are little endian IEEE 754, as the machines that are supported have them.
 *
 * Threads. Each handle may be used by one thread at a time; another that comes meanwhile gets MOBIZO_BUSY, but for
 * mobizo_cancel(), and for tokenizers, which any number of threads may use at once. Different handles are independent. All
 * programs of a process share one pool of threads.
 *
 * Growth. A struct begins with its size as the caller was compiled: later versions add members at the end, and tell by it what
 * the caller knows. Functions and members are never removed or changed under the same name. Flags are 0 or 1. */
#ifndef MOBIZO_H
#define MOBIZO_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define MOBIZO_API __attribute__((visibility("default")))
#else
#define MOBIZO_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- versions and errors ------------------------------------------------------------------------------------------------- */

#define MOBIZO_VERSION "0.1.0" /* of this header */

/* The version of the library, "major.minor.patch". */
MOBIZO_API const char* mobizo_version(void);

typedef int32_t mobizo_status;
enum {
  MOBIZO_OK = 0,
  MOBIZO_INVALID = 1,      /* an argument or a file does not fit; a handle is closed */
  MOBIZO_SYSTEM = 2,       /* the operating system refused something: mobizo_last_errno() */
  MOBIZO_CANCELLED = 3,    /* by mobizo_cancel() or a callback */
  MOBIZO_JOURNAL_LOST = 4, /* another program removed or changed the journal of a run, which ended early */
  MOBIZO_BUSY = 5,         /* another call uses the handle */
  MOBIZO_NO_MEMORY = 6,
  MOBIZO_INTERNAL = 7 /* anything else: an error of this library */
};

/* What the last call of this thread that failed has to say, one line without control characters; "" before the first. Valid
 * until the next call of this thread that fails. */
MOBIZO_API const char* mobizo_last_message(void);
/* The errno of that call if its status was MOBIZO_SYSTEM, else 0. */
MOBIZO_API int32_t mobizo_last_errno(void);
/* "MOBIZO_INVALID" for 1, and so on; "unknown" for what is no status. */
MOBIZO_API const char* mobizo_status_name(mobizo_status status);

/* Releases what a function allocated; NULL does nothing. */
MOBIZO_API void mobizo_free(void* allocated);

/* ---- programs ------------------------------------------------------------------------------------------------------------ */

/* A training program (.pte) in memory, with one adapter. The value is no address: one that is closed, made up or of another
 * kind is refused with MOBIZO_INVALID, always. */
typedef struct mobizo_program mobizo_program;

/* Loads a program. threads: of the process's pool, 0 for ExecuTorch's choice; MOBIZO_INVALID if another program is open that
 * uses it with another number. On failure *program is NULL. */
MOBIZO_API mobizo_status mobizo_program_open(const char* path, int64_t threads, mobizo_program** program);
/* Releases a program; NULL does nothing. MOBIZO_BUSY, and nothing is released, while a call uses it. */
MOBIZO_API mobizo_status mobizo_program_close(mobizo_program* program);
/* What the program says of itself, as JSON (docs/executorch.md); *json is allocated. */
MOBIZO_API mobizo_status mobizo_program_description(mobizo_program* program, char** json);

/* What a file says of itself, as JSON: an object whose "kind" is "program", "data set", "adapter" or "journal"; *json is
 * allocated. */
MOBIZO_API mobizo_status mobizo_file_info(const char* path, char** json);

/* Ends the call that is at work with this program on another thread, or whose callback this is, with MOBIZO_CANCELLED: a
 * training after its step, or between two forwards of a validation; an evaluation, a readout or an answer between two forwards,
 * of which a long prompt takes several. The program can be used again at once. Does nothing if there is none. May be called
 * from any thread, but not from a handler of signals. */
MOBIZO_API mobizo_status mobizo_cancel(mobizo_program* program);

/* ---- training ------------------------------------------------------------------------------------------------------------ */

/* How good `count` answers to one prompt are, each without special tokens and white space around it: sets as many rewards,
 * finite numbers, higher being better. The prompt has its special tokens; the reference is the answer of the data set. Returns
 * 0 to go on, anything else to cancel the run. Otherwise as mobizo_callbacks. */
typedef int32_t (*mobizo_reward)(const char* prompt, const char* const* answers, int64_t count, const char* reference,
                                 double* rewards, void* user);

/* An objective without a gradient: 1 - the mean reward of what each perturbed copy of the model writes to the prompts of a
 * step. An adapter is kept by that of the validation rows. Fill it with mobizo_objective_init(), then set the first four. */
typedef struct mobizo_objective {
  uint64_t size; /* sizeof(mobizo_objective) */
  mobizo_reward reward;
  void* user;
  struct mobizo_tokenizer* tokenizer; /* that of the program */
  const char* name;                   /* by which a journal tells the reward from others */
  int64_t max_new_tokens;             /* from here on as in mobizo_generate_options */
  double temperature;
  int64_t top_k;
  double top_p;
  int64_t seed;
} mobizo_objective;

/* Sets all members to their defaults. size: sizeof *objective. */
MOBIZO_API mobizo_status mobizo_objective_init(mobizo_objective* objective, uint64_t size);

/* Fill it with mobizo_train_options_init(), then change what should differ. */
typedef struct mobizo_train_options {
  uint64_t size;                            /* sizeof(mobizo_train_options) */
  int64_t steps;                            /* in all, resumed ones included */
  double eps;                               /* size of a perturbation */
  double lr;                                /* learning rate */
  const char* lr_schedule;                  /* "constant", "linear" or "cosine"; the last two fall to 0 */
  int64_t normalize;                        /* divide by the spread of the losses, not by eps */
  int64_t run_seed;                         /* of all directions */
  const char* journal;                      /* file that records every step; NULL for none */
  int64_t sync_every;                       /* steps between syncs of the journal to the disk */
  int64_t resume;                           /* go on with the journal if there is one */
  int64_t eval_every;                       /* steps between validations; 0 for none, -1 for a tenth of steps */
  int64_t validation_rows;                  /* most rows of the validation split to use */
  const char* keep;                         /* "best", the latest adapter not significantly worse than the best, or "last" */
  int64_t stop_unsteady;                    /* end the run when its loss has run away */
  const struct mobizo_objective* objective; /* what is minimised in place of the cross-entropy; NULL for that */
  const char* reward_shaping;               /* of the losses by which directions are weighed: "none", "standardise" or "rank" */
} mobizo_train_options;

/* Sets all members to their defaults. size: sizeof *options. */
MOBIZO_API mobizo_status mobizo_train_options_init(mobizo_train_options* options, uint64_t size);

/* A step that was made. Its arrays are valid until the callback returns. */
typedef struct mobizo_step {
  uint64_t size;
  int64_t step;  /* from 0 */
  int64_t steps; /* planned in all */
  double loss;   /* of the model before the update */
  double lr;
  double seconds;
  double update_norm;               /* of the update before this step's */
  int64_t skipped;                  /* something was not finite, so nothing is updated */
  int64_t unsteady;                 /* the loss has run away */
  const float* losses;              /* of the groups, loss_count of them */
  const float* projected_gradients; /* of the queries, gradient_count of them; NaN if the step was skipped */
  int64_t loss_count;
  int64_t gradient_count;
} mobizo_step;

/* A validation. */
typedef struct mobizo_validation {
  uint64_t size;
  int64_t step;             /* steps made before it */
  double loss;              /* mean cross-entropy over the tokens to be predicted, or that of an objective */
  double accuracy;          /* share of rows whose last token has the highest score; NaN with an objective */
  double balanced_accuracy; /* mean over the labels; NaN if a row has none or a label no row */
} mobizo_validation;

/* Each may be NULL. They are called on the thread that called mobizo_train(), with `user`. Those that return a number return 0
 * to go on, anything else to cancel the run. They may call mobizo_cancel() with the program; other functions on it are refused
 * with MOBIZO_BUSY. No exception of another language may leave one. */
typedef struct mobizo_callbacks {
  uint64_t size; /* sizeof(mobizo_callbacks) */
  void* user;
  int32_t (*on_step)(const mobizo_step* step, void* user);
  int32_t (*on_evaluation)(const mobizo_validation* validation, void* user);
  void (*on_warning)(const char* sentence, void* user); /* what the user should read */
} mobizo_callbacks;

typedef struct mobizo_train_result {
  uint64_t size;         /* sizeof(mobizo_train_result), set by the caller */
  int64_t steps;         /* made in all, fewer than planned if the run was stopped or cancelled */
  int64_t stopped;       /* because the loss ran away, or the journal was lost */
  int64_t resumed_steps; /* of these, replayed from the journal; 0 if the run was cancelled */
  int64_t skipped_steps; /* of those made now */
  int64_t best_step;     /* steps behind the adapter that the program has now */
  int64_t evaluations;   /* validations made */
  double loss;           /* of the validation of that adapter, and so the next two; NaN if there was none */
  double accuracy;
  double balanced_accuracy;
} mobizo_train_result;

/* Tunes the adapter that the program has, on a data set of `mobizo tokenize`, and leaves the kept one in it. options, callbacks
 * and result may be NULL.
 *
 * MOBIZO_INVALID comes before the first step, or from a reward that is no number, with the adapter of the last step made.
 * MOBIZO_SYSTEM if the journal cannot be written, and MOBIZO_CANCELLED: the adapter is that of the last step made, which the
 * journal has. MOBIZO_JOURNAL_LOST: the kept adapter is in the program, and nothing else has what it learned. In the last two
 * cases *result is filled, too. */
MOBIZO_API mobizo_status mobizo_train(mobizo_program* program, const char* dataset, const mobizo_train_options* options,
                                      const mobizo_callbacks* callbacks, mobizo_train_result* result);

typedef struct mobizo_readout {
  uint64_t size;      /* sizeof(mobizo_readout), set by the caller */
  int64_t rank;       /* of the head's adapter; 0 if nothing that was tried did better than the model as it was */
  int64_t rows;       /* that it was made of */
  double ridge;       /* that validated best; NaN for rank 0 */
  double loss;        /* on the validation rows, as chosen */
  double loss_before; /* of the model as it was */
  double seconds;
} mobizo_readout;

/* Gives the LM head a logistic regression on the last hidden states, from which a training then goes on: the start in closed
 * form. rows: most rows of the training split to make it of; validation_rows: most of the validation split to choose by; 0 for
 * the default of each. readout may be NULL. Unless MOBIZO_OK comes the program is as it was. */
MOBIZO_API mobizo_status mobizo_read_out(mobizo_program* program, const char* dataset, int64_t rows, int64_t validation_rows,
                                         mobizo_readout* readout);

/* Applies the first `until` steps of a journal, -1 for all, to the adapter that the program has, which must be the one with
 * which that run began. *steps, which may be NULL, is how many there were. */
MOBIZO_API mobizo_status mobizo_replay(mobizo_program* program, const char* journal, int64_t until, int64_t* steps);

/* ---- data sets ----------------------------------------------------------------------------------------------------------- */

/* Fill it with mobizo_tokenize_options_init(), then change what should differ. */
typedef struct mobizo_tokenize_options {
  uint64_t size;           /* sizeof(mobizo_tokenize_options) */
  const char* text_column; /* of labelled texts, and so the next */
  const char* label_column;
  const char* answers; /* of a conversation, "all" or "last" */
  int64_t steps;       /* to lay out batches for; more start again */
  int64_t seed;        /* of the batches */
  int64_t train_rows;  /* most rows of each split; 0 for all */
  int64_t validation_rows;
  int64_t test_rows;
  int64_t max_length; /* most tokens of a row, 0 for that of the program */
} mobizo_tokenize_options;

/* Sets all members to their defaults. size: sizeof *options. */
MOBIZO_API mobizo_status mobizo_tokenize_options_init(mobizo_tokenize_options* options, uint64_t size);

/* Writes a data set for the program, whole or not at all, of the texts in a file .csv or .jsonl (docs/data.md), by the
 * tokenizer.json that the program was exported with. options may be NULL. Of the callbacks, which may be NULL, on_warning is
 * told what is odd about the texts. */
MOBIZO_API mobizo_status mobizo_tokenize(mobizo_program* program, const char* texts, const char* tokenizer, const char* dataset,
                                         const mobizo_tokenize_options* options, const mobizo_callbacks* callbacks);

/* ---- scoring ------------------------------------------------------------------------------------------------------------- */

typedef struct mobizo_evaluation {
  uint64_t size; /* sizeof(mobizo_evaluation), set by the caller */
  int64_t rows;
  int64_t classes; /* candidate tokens, or the vocabulary */
  double loss;     /* these three as in mobizo_validation */
  double accuracy;
  double balanced_accuracy;
} mobizo_evaluation;

/* Scores the first `rows` rows, 0 for all, of the split "train", "validation" or "test". evaluation may be NULL, and so may
 * scores and labels, whose arrays are allocated: [rows, classes] scores of the last token of each row, and [rows] labels, -1
 * for a row without one. */
MOBIZO_API mobizo_status mobizo_evaluate(mobizo_program* program, const char* dataset, const char* split, int64_t rows,
                                         mobizo_evaluation* evaluation, float** scores, int32_t** labels);

/* ---- the adapter --------------------------------------------------------------------------------------------------------- */

/* Writes the adapter as PEFT's adapter_model.safetensors, whole or not at all. */
MOBIZO_API mobizo_status mobizo_adapter_save(mobizo_program* program, const char* path);
/* Begins again with the adapter of such a file, which must be of the same model and LoRA-A; unless MOBIZO_OK comes the program
 * is as it was. */
MOBIZO_API mobizo_status mobizo_adapter_load(mobizo_program* program, const char* path);

/* How many numbers a run changes: those of every LoRA-B. */
MOBIZO_API mobizo_status mobizo_adapter_size(mobizo_program* program, int64_t* count);
/* Copies every LoRA-B, row-major, one after the other in the order of "parameters" in the description. count: of numbers there
 * is room for, exactly mobizo_adapter_size(). */
MOBIZO_API mobizo_status mobizo_adapter_get(mobizo_program* program, float* values, int64_t count);
/* Begins again with such numbers, which must be finite: what the optimizer keeps of earlier updates is forgotten. An adapter of
 * the LM head stays. */
MOBIZO_API mobizo_status mobizo_adapter_set(mobizo_program* program, const float* values, int64_t count);

/* ---- tokenizers ---------------------------------------------------------------------------------------------------------- */

/* A tokenizer of Hugging Face's library, as its tokenizer.json describes it. Closed ones are refused as closed programs are. */
typedef struct mobizo_tokenizer mobizo_tokenizer;

/* On failure *tokenizer is NULL. */
MOBIZO_API mobizo_status mobizo_tokenizer_open(const char* path, mobizo_tokenizer** tokenizer);
/* NULL does nothing. Calls that are at work go on. */
MOBIZO_API mobizo_status mobizo_tokenizer_close(mobizo_tokenizer* tokenizer);

/* The ids of `length` bytes of text; with those that the tokenizer puts around a text, if add_special is not 0. *ids is
 * allocated, *count of them. */
MOBIZO_API mobizo_status mobizo_tokenizer_encode(mobizo_tokenizer* tokenizer, const char* text, uint64_t length,
                                                 int32_t add_special, int64_t** ids, int64_t* count);
/* The text of `count` ids, of which those that the vocabulary lacks are left out, and so are special tokens if skip_special is
 * not 0. *text is allocated and ends with a NUL, which *length does not count; length may be NULL. */
MOBIZO_API mobizo_status mobizo_tokenizer_decode(mobizo_tokenizer* tokenizer, const int64_t* ids, int64_t count,
                                                 int32_t skip_special, char** text, uint64_t* length);
/* Tokens, added ones among them. */
MOBIZO_API mobizo_status mobizo_tokenizer_size(mobizo_tokenizer* tokenizer, int64_t* tokens);
/* The id of a token as the vocabulary writes it, -1 if there is none. */
MOBIZO_API mobizo_status mobizo_tokenizer_id(mobizo_tokenizer* tokenizer, const char* token, int64_t* id);

/* ---- writing ------------------------------------------------------------------------------------------------------------- */

/* "system" at the beginning or not at all, then "user" and "assistant" in turn. */
typedef struct mobizo_message {
  const char* role;
  const char* content;
} mobizo_message;

/* The tokens of a conversation that ends with a user's message, and of the beginning of an answer, by the chat template that
 * the program carries. tokenizer: that of the program. *ids is allocated, *id_count of them. MOBIZO_INVALID if a
 * message holds a special token, or what the template takes for more than text: of an answer with thoughts, pass on what
 * follows "</think>". */
MOBIZO_API mobizo_status mobizo_chat_encode(mobizo_program* program, mobizo_tokenizer* tokenizer,
                                            const mobizo_message* messages, int64_t count, int64_t** ids, int64_t* id_count);

/* Fill it with mobizo_generate_options_init(), then change what should differ. */
typedef struct mobizo_generate_options {
  uint64_t size;          /* sizeof(mobizo_generate_options) */
  int64_t max_new_tokens; /* most tokens of an answer, the one that ends it included */
  double temperature;     /* divides the logits; 0 takes the likeliest token, whatever the rest says */
  int64_t top_k;          /* sample from so many of the likeliest tokens; 0 for all */
  double top_p;           /* then from the fewest of the likeliest that have this share of the probability */
  int64_t seed;           /* of the random numbers */
} mobizo_generate_options;

/* Sets all members to their defaults. size: sizeof *options. */
MOBIZO_API mobizo_status mobizo_generate_options_init(mobizo_generate_options* options, uint64_t size);

/* What ended an answer. */
enum {
  MOBIZO_ENDED_STOP = 0,    /* its last token is one that ends an answer */
  MOBIZO_ENDED_LENGTH = 1,  /* it has max_new_tokens */
  MOBIZO_ENDED_CONTEXT = 2, /* the program has no room for more */
  MOBIZO_ENDED_CALLER = 3   /* the callback */
};

typedef struct mobizo_generated {
  uint64_t size;          /* sizeof(mobizo_generated), set by the caller */
  int64_t tokens;         /* written */
  int64_t ended;          /* MOBIZO_ENDED_... */
  int64_t reused;         /* tokens of the prompt that were in the cache */
  int64_t prefilled;      /* and those that were not */
  double prefill_seconds; /* until the first token */
  double decode_seconds;  /* for the others */
} mobizo_generated;

/* Told of each token as it is chosen, and of the text that it completes, whole characters, "" for none or without a tokenizer;
 * at the end perhaps of token -1 with the text that was held back. Returns 0 to go on, anything else to end the answer.
 * Otherwise as mobizo_callbacks. */
typedef int32_t (*mobizo_on_token)(int64_t token, const char* text, void* user);

/* Writes what follows `count` tokens of a prompt, by the adapter as it is now. What a prompt has in common with the text before
 * it is not computed again. tokenizer: that of the program, for the texts that on_token is told of, or NULL; on_token and
 * generated may be NULL, too, and so may tokens, whose array is allocated. MOBIZO_INVALID if the program was exported without a
 * context. MOBIZO_CANCELLED: what on_token was told of is all there is. */
MOBIZO_API mobizo_status mobizo_generate(mobizo_program* program, mobizo_tokenizer* tokenizer, const int64_t* prompt,
                                         int64_t count, const mobizo_generate_options* options, mobizo_on_token on_token,
                                         void* user, mobizo_generated* generated, int64_t** tokens);

#ifdef __cplusplus
}
#endif

#endif
