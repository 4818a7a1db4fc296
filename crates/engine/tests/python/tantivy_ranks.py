"""Ranks texts with one tantivy index. Reads {"texts": [[id, text], …], "queries": […], "k": k} from the file that is named, and
prints for each query the best ids with their scores. Its words are those of Lance's default settings, stop words included."""

import json
import sys

import tantivy

task = json.load(open(sys.argv[1]))
words = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
for filter in [
    tantivy.Filter.remove_long(40),
    tantivy.Filter.lowercase(),
    tantivy.Filter.stemmer("english"),
    tantivy.Filter.ascii_fold(),
]:
    words = words.filter(filter)
schema = tantivy.SchemaBuilder()
schema.add_integer_field("id", stored=True)
schema.add_text_field("text", tokenizer_name="words")
index = tantivy.Index(schema.build())
index.register_tokenizer("words", words.build())
writer = index.writer(num_threads=1)
for id, text in task["texts"]:
    writer.add_document(tantivy.Document(id=id, text=text))
writer.commit()
index.reload()
searcher = index.searcher()
ranks = []
for query in task["queries"]:
    found = searcher.search(index.parse_query(query, ["text"]), task["k"]).hits
    ranks.append([[searcher.doc(place)["id"][0], score] for score, place in found])
json.dump(ranks, sys.stdout)
