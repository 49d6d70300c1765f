-- Puts the deployment that a REST path names (/v2/models/{deployment}/..., /predict/{deployment}) into the header
-- maas-model, and has the route chosen again by it. What the path says counts more than what the caller's header says.
function envoy_on_request(handle)
  local path = handle:headers():get(":path")
  local deployment = path:match("^/v2/models/([a-z0-9-]+)") or path:match("^/predict/([a-z0-9-]+)")
  if deployment then
    handle:headers():replace("maas-model", deployment)
    handle:clearRouteCache()
  end
end
