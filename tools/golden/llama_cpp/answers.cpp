// What llama.cpp makes of a model: the ids of a text, and greedy answers to prompts, as one JSON object on stdout.
//
//     answers MODEL TEXT TOKENS PROMPTS COUNT
//
// `tokens` are the first TOKENS ids of the file TEXT; for each line of the file PROMPTS `answers` has its ids, the COUNT ids that
// follow it at temperature 0, and by how much each led the runner-up. README.md beside this file says how it is built and run.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "llama.h"

static std::vector<llama_token> ids(const llama_vocab * vocab, const std::string & text) {
    std::vector<llama_token> tokens(text.size() + 8);
    const int count = llama_tokenize(vocab, text.data(), text.size(), tokens.data(), tokens.size(), true, false);
    tokens.resize(count);
    return tokens;
}

template <typename T> static void list(const char * key, const std::vector<T> & values, const char * format, const char * end) {
    printf("\"%s\": [", key);
    for (size_t i = 0; i < values.size(); i++) {
        printf(i ? ", " : "");
        printf(format, values[i]);
    }
    printf("]%s", end);
}

int main(int argc, char ** argv) {
    if (argc != 6) {
        fprintf(stderr, "usage: answers MODEL TEXT TOKENS PROMPTS COUNT\n");
        return 2;
    }
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) {
        fprintf(stderr, "cannot load %s\n", argv[1]);
        return 1;
    }
    const llama_vocab * vocab = llama_model_get_vocab(model);

    std::ifstream text_file(argv[2]);
    const std::string text((std::istreambuf_iterator<char>(text_file)), {});
    std::vector<llama_token> tokens = ids(vocab, text);
    tokens.resize(std::min<size_t>(tokens.size(), atoi(argv[3])));
    printf("{");
    list("tokens", tokens, "%d", ",\n\"answers\": [\n");

    const int count = atoi(argv[5]);
    std::ifstream prompts(argv[4]);
    bool first = true;
    for (std::string line; std::getline(prompts, line);) {
        llama_context_params params = llama_context_default_params();
        params.n_ctx = 256;
        params.n_threads = params.n_threads_batch = 2;
        llama_context * context = llama_init_from_model(model, params);
        const std::vector<llama_token> prompt = ids(vocab, line);
        std::vector<llama_token> next = prompt, greedy;
        std::vector<float> leads;
        for (int i = 0; i < count; i++) {
            if (llama_decode(context, llama_batch_get_one(next.data(), next.size()))) {
                fprintf(stderr, "cannot decode\n");
                return 1;
            }
            const float * logits = llama_get_logits_ith(context, -1);
            int best = 0, second = 1;
            for (int id = 0; id < llama_vocab_n_tokens(vocab); id++) {
                if (logits[id] > logits[best]) {
                    second = best;
                    best = id;
                } else if (id != best && (second == best || logits[id] > logits[second])) {
                    second = id;
                }
            }
            greedy.push_back(best);
            leads.push_back(logits[best] - logits[second]);
            next = {best};
        }
        printf("%s{", first ? "" : ",\n");
        first = false;
        list("prompt", prompt, "%d", ", ");
        list("greedy", greedy, "%d", ", ");
        list("lead", leads, "%.3f", "}");
        llama_free(context);
    }
    printf("\n]}\n");
    llama_model_free(model);
    return 0;
}
