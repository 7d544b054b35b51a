"""`python -m bench NAME [options]` runs a benchmark; without a name it lists them."""

import importlib
import sys

NAMES = {
    "pipeline": "items/s, CPU and memory from a file to its results, without a model",
    "killed": "one large batch whose worker is killed again and again: what is lost, and what is done twice",
    "recovery": "everything is killed while batches run, and started again: how soon they go on",
    "generation": "512 chats on the packaged model, against vLLM's own run_batch",
    "evals": "items/s of each grader; runs of 5,000 and 50,000 items with a stub model: time and peak memory",
    "regressions": "how often a regression of an eval is called one by mistake, or missed",
    "finetune": "training against plain trl; loading adapters; eight batches at once, an adapter each",
    "intake": "MB/s of checking a batch file, beside a bare JSON parse",
    "fairness": "what a small project feels of one with a hundred times its work",
    "load": "requests at a steady rate, a crowd at once, long queues and long lists",
    "growth": "bytes of a job; pages of lists, a scrape and a pass of retention with many ended jobs",
    "waiting": "time to the first token, the engine's own and a client's, idle and while a batch runs",
    "aliases": "the shares of the models of an alias, whether users keep one, and what the draw costs",
    "limits": "what permissions and rate limits cost an interactive request: p50 and p99",
    "console": "size of the console, seconds of its first page, server time of a job's page, CPU of open pages",
    "webhooks": "deliveries/s, and how soon after the event",
    "ingest": "documents/s into a vector store, against LlamaIndex's pipeline; again, and how memory grows",
    "cache": "CPU time that the cache of vectors costs and saves, beside embedding itself",
    "embed": "texts/s, against sentence-transformers, and whether the vectors are the same",
    "retrieval": "how well a search finds what is relevant: nDCG@10 and MRR@10 by vectors, words, both, re-ranked",
}


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in NAMES:
        print("usage: python -m bench NAME [options]   (each has --help)\n")
        for known, told in NAMES.items():
            print(f"  {known:<11} {told}")
        raise SystemExit(2 if name else 0)
    sys.argv = [f"bench {name}", *sys.argv[2:]]
    importlib.import_module(f"bench.{name}").main()


if __name__ == "__main__":
    main()
