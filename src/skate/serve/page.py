"""The page of ``serve.http`` on which a person can try a model."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>skate</title>
<style>
  :root { color-scheme: light dark; }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto;
         padding: 0 1rem; }
  h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
  label { display: block; margin: .8rem 0 .2rem; font-weight: 600; }
  input, select, textarea, button { font: inherit; padding: .4rem .5rem; width: 100%;
         box-sizing: border-box; }
  textarea, pre { font: 14px/1.4 ui-monospace, monospace; }
  button { margin-top: 1rem; width: auto; padding: .4rem 1.4rem; }
  pre { overflow: auto; max-height: 24rem; padding: .8rem; border: 1px solid #8885; }
  table { border-collapse: collapse; } td { padding: .1rem 1rem .1rem 0; }
  .wrong { color: #c33; }
</style>
<h1>Try a model</h1>
<p>The <a href="https://github.com/kserve/open-inference-protocol">Open Inference
Protocol</a>, version 2. Its description: <code>/openapi.json</code>; metrics for
Prometheus: <code>/metrics</code>.</p>
<form id="form">
  <label for="token">Token</label>
  <input id="token" type="password" autocomplete="off"
    placeholder="printed where the server was started">
  <label for="model">Model</label>
  <select id="model"></select>
  <label for="body">Request</label>
  <textarea id="body" rows="12" spellcheck="false"></textarea>
  <button>Ask</button>
</form>
<h2>Answer</h2>
<p id="status"></p>
<pre id="answer"></pre>
<h2>Routes</h2>
<table id="routes"></table>
<script>
const $ = id => document.getElementById(id);
const headers = () => $("token").value
  ? {"Authorization": "Bearer " + $("token").value} : {};
let paths = {};
const blank = {inputs: [{name: "states", shape: [1, 1], datatype: "FP32", data: [0]}]};
function show(status, text, wrong) {
  $("status").textContent = status;
  $("status").className = wrong ? "wrong" : "";
  $("answer").textContent = text;
}
function fill() {
  const post = paths["/v2/models/" + $("model").value + "/infer"].post;
  const content = post.requestBody.content["application/json"];
  $("body").value = JSON.stringify(content.example || blank, null, 2);
}
async function load() {
  const answer = await fetch("openapi.json", {headers: headers()});
  if (!answer.ok) {
    if (answer.status != 401 || $("token").value)
      show(answer.status + " " + answer.statusText, await answer.text(), true);
    return;
  }
  paths = (await answer.json()).paths;
  const names = Object.keys(paths).filter(p => p.endsWith("/infer"))
    .map(p => p.slice("/v2/models/".length, -"/infer".length));
  $("model").replaceChildren(...names.map(n => new Option(n, n)));
  $("routes").replaceChildren(...Object.entries(paths).map(([path, methods]) => {
    const row = document.createElement("tr");
    for (const text of [Object.keys(methods)[0].toUpperCase(), path,
                        Object.values(methods)[0].summary]) {
      row.insertCell().textContent = text;
    }
    return row;
  }));
  fill();
}
$("token").addEventListener("change", load);
$("model").addEventListener("change", fill);
$("form").addEventListener("submit", async event => {
  event.preventDefault();
  if (!$("model").value) await load();
  const started = performance.now();
  try {
    const answer = await fetch("v2/models/" + $("model").value + "/infer",
      {method: "POST", headers: headers(), body: $("body").value});
    const text = await answer.text();
    const took = (performance.now() - started).toFixed(1) + " ms";
    let shown = text;
    try { shown = JSON.stringify(JSON.parse(text), null, 2); } catch {}
    show(answer.status + " in " + took, shown, !answer.ok);
  } catch (error) { show("no answer", String(error), true); }
});
load();
</script>
</html>
"""
