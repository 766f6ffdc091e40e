-- Chat requests for wrk, a unit each; BODY_MODEL names the model, BODY_STREAM is "1" for a stream;
-- HEADERS are more headers, a line each ("name: value").
local stream = os.getenv("BODY_STREAM") == "1" and ',"stream":true' or ""
local head = '{"model":"' .. os.getenv("BODY_MODEL") .. '","messages":[{"role":"user","content":'
  .. '"Our summer sale starts on Monday, with everything at half its price"}],"user":"post-'
local number = 0
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer sk-any-key-of-this-benchmark"
for name, value in (os.getenv("HEADERS") or ""):gmatch("([^:\n]+): ([^\n]+)") do
  wrk.headers[name] = value
end
request = function()
  number = number + 1
  return wrk.format(nil, nil, nil, head .. number .. '"' .. stream .. "}")
end
