package engineapi

import "net/http"

// routes fills both muxes. A GET pattern answers HEAD too. What a node's socket does not know goes to the engine.
func (s *Server) routes() {
	for pattern, e := range map[string]endpoint{
		"GET /swarm":           s.inspectSwarm,
		"POST /swarm/update":   s.updateSwarm,
		"GET /swarm/unlockkey": s.unlockKey,

		"GET /nodes":              s.listNodes,
		"GET /nodes/{id}":         s.inspectNode,
		"DELETE /nodes/{id}":      s.removeNode,
		"POST /nodes/{id}/update": s.updateNode,

		"GET /services":              s.listServices,
		"POST /services/create":      s.createService,
		"GET /services/{id}":         s.inspectService,
		"POST /services/{id}/update": s.updateService,
		"DELETE /services/{id}":      s.removeService,

		"GET /tasks":      s.listTasks,
		"GET /tasks/{id}": s.inspectTask,

		"GET /secrets":              s.listSecrets,
		"POST /secrets/create":      s.createSecret,
		"GET /secrets/{id}":         s.inspectSecret,
		"POST /secrets/{id}/update": s.updateSecret,
		"DELETE /secrets/{id}":      s.removeSecret,

		"GET /configs":              s.listConfigs,
		"POST /configs/create":      s.createConfig,
		"GET /configs/{id}":         s.inspectConfig,
		"POST /configs/{id}/update": s.updateConfig,
		"DELETE /configs/{id}":      s.removeConfig,

		"GET /miniswarm/tasks/{id}/explain":    s.explainTask,
		"GET /miniswarm/services/{id}/explain": s.explainService,
		"POST /miniswarm/plan":                 s.plan,
	} {
		s.both(pattern, s.onLeader(e))
	}
	s.both("GET /services/{id}/logs", handler(s.serviceLogs))
	s.both("GET /tasks/{id}/logs", handler(s.taskLogs))
	s.both("/miniswarm/tasks/{id}/engine/{rest...}", handler(s.taskEngine))
	s.swarm.Handle("GET /miniswarm/tasks/{id}/log", s.streaming(s.relayTaskLog))
	s.aboutRoutes()
	// Of networks the socket's own handlers decide whether they are the swarm's, and then ask the leader.
	s.swarm.Handle("POST /networks/create", s.onLeader(s.createNetwork))
	s.swarm.Handle("DELETE /networks/{id}", s.onLeader(s.removeNetwork))
	for pattern, h := range map[string]handler{
		"GET /_ping":   s.ping,
		"GET /info":    s.info,
		"GET /version": s.version,
		"GET /events":  s.streamEvents,

		"GET /distribution/": s.inspectDistribution,

		"POST /swarm/init":   s.initSwarm,
		"POST /swarm/join":   s.joinSwarm,
		"POST /swarm/leave":  s.leaveSwarm,
		"POST /swarm/unlock": s.unlockSwarm,

		"POST /miniswarm/backup":  s.backupCluster,
		"POST /miniswarm/recover": s.recoverCluster,
		"POST /miniswarm/rejoin":  s.rejoinCluster,

		"GET /networks":         s.mergedNetworks,
		"GET /networks/{id}":    s.anyNetwork,
		"POST /networks/create": s.createAnyNetwork,
		"DELETE /networks/{id}": s.removeAnyNetwork,
		"POST /networks/prune":  s.pruneNetworks,

		"POST /containers/create":        s.createContainer,
		"POST /networks/{id}/connect":    s.connectContainer,
		"POST /networks/{id}/disconnect": s.settling(s.disconnectContainer),
		"DELETE /containers/{id}":        s.settling(s.leaveToEngine),
		"POST /containers/prune":         s.settling(s.leaveToEngine),

		"/miniswarm/": notFoundHere,
	} {
		s.socket.Handle(pattern, h)
	}
	s.socket.HandleFunc("/", s.toEngine)
	s.swarm.Handle("/", handler(notFoundHere))
}

func (s *Server) both(pattern string, h http.Handler) {
	s.swarm.Handle(pattern, h)
	s.socket.Handle(pattern, h)
}

func notFoundHere(http.ResponseWriter, *http.Request) error {
	return errorf(http.StatusNotFound, "page not found")
}
