-- Load for server.py: wrk posts requests for the 8 features of one random key.
--
--     wrk -t1 -c32 -d8s -s server.lua URL -- ours|feast KEYS VIEW FEATURE...
--
-- At the end it prints what it counted as one line of JSON.

local head, tail, keys

function init(args)
  local kind, view = args[1], args[3]
  keys = tonumber(args[2])
  local names = {}
  for i = 4, #args do
    names[#names + 1] = string.format('"%s:%s"', view, args[i])
  end
  head = '{"features": [' .. table.concat(names, ", ") .. '], "entities": '
  if kind == "ours" then
    head, tail = head .. '[{"driver_id": ', "}]}"
  else
    head, tail = head .. '{"driver_id": [', "]}}"
  end
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  math.randomseed(7)
end

function request()
  return wrk.format(nil, nil, nil, head .. math.random(0, keys - 1) .. tail)
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "seconds": %.6f, "p50": %.6f, "p99": %.6f, "refused": %d, "broken": %d}\n',
    summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e6, latency:percentile(99) / 1e6, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout
  ))
end
