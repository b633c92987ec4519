package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/node/doctor"
	"github.com/miniswarm/miniswarm/raftstore"
)

const (
	// reportLimit is how long a node has to look at itself; reportsAtOnce is how many nodes do at a time.
	reportLimit, reportsAtOnce = 15 * time.Second, 32
	// named is how many services of a kind of trouble are named.
	named = 20
	// startMachine is what to do first about a node that does not answer.
	startMachine = "start the machine or its daemon"
	// starting is how long a task may be on its way without being worth a word.
	starting = 30 * time.Second
	// enough is how many nodes are enough for three managers, of which one may fail.
	enough = 3
)

// checkCluster looks at the cluster, as its leader, and has all nodes look at themselves.
func (g *managing) checkCluster(ctx context.Context) doctor.Cluster {
	snap := g.store.Snapshot()
	var c doctor.Cluster
	clocks := map[string]time.Duration{}
	if d := g.manager.Dispatcher(); d != nil {
		clocks = d.ClockOffsets()
	}
	var mu sync.Mutex // guards c while nodes are asked
	asking, gctx := errgroup.WithContext(ctx)
	asking.SetLimit(reportsAtOnce)
	asking.Go(func() error {
		found := checkExternalCAs(g.manager.ProbeExternalCAs(gctx), snap, g.store.Members())
		mu.Lock()
		defer mu.Unlock()
		c.Findings = append(c.Findings, found...)
		return nil
	})
	for n := range snap.Nodes() {
		if n.Status.State != swarm.NodeStateReady {
			continue
		}
		asking.Go(func() error {
			r, err := g.askNode(gctx, n.ID)
			mu.Lock()
			defer mu.Unlock()
			if ahead := clocks[n.ID]; err != nil && ahead.Abs() >= skewed {
				f := clock(nodeName(n)+"'s", ahead) // so that it may be unable to answer
				f.Says = fmt.Sprintf("%s, and it did not report: %v", f.Says, err)
				c.Findings = append(c.Findings, f)
				return nil
			}
			if err != nil {
				c.Findings = append(c.Findings, doctor.Bad("nodes", "run 'miniswarm doctor' on it", "%s is Ready and did not report: %v", nodeName(n), err))
				return nil
			}
			namePeers(snap, r.Findings)
			c.Nodes = append(c.Nodes, r)
			return nil
		})
	}
	_ = asking.Wait() // none of them fails
	slices.SortFunc(c.Nodes, func(a, b doctor.Report) int { return strings.Compare(a.Hostname+a.NodeID, b.Hostname+b.NodeID) })
	c.Findings = slices.Concat(checkQuorum(g.store.Status(), snap), checkNodes(snap), checkRotation(snap, time.Now()), checkVersions(c.Nodes), checkServices(snap, time.Now()), c.Findings)
	doctor.Sort(c.Findings)
	return c
}

// askNode has a node look at itself, through a stream that the node opens.
func (g *managing) askNode(ctx context.Context, nodeID string) (r doctor.Report, err error) {
	ctx, cancel := context.WithTimeout(ctx, reportLimit)
	defer cancel()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return g.manager.Dial(ctx, nodeID)
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+nodeID+protocol.PathNode+"/doctor", nil)
	if err != nil {
		return r, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return r, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return r, errors.New("it answered " + resp.Status)
	}
	return r, json.NewDecoder(resp.Body).Decode(&r)
}

func nodeName(n *cluster.Node) string {
	if n.Description.Hostname != "" {
		return n.Description.Hostname
	}
	return n.ID
}

// namePeers puts names in place of ids in what nodes say of their peers, of which a worker knows only the ids.
func namePeers(snap *cluster.Snapshot, fs []doctor.Finding) {
	var names []string
	for n := range snap.Nodes() {
		names = append(names, n.ID, nodeName(n))
	}
	r := strings.NewReplacer(names...)
	for i := range fs {
		if fs[i].Check == checkOfPeers {
			fs[i].Says = r.Replace(fs[i].Says)
		}
	}
}

// reference is what a command about a node is to be given: its name, or its id where others have the name as well, as
// a machine does that was joined or recovered anew.
func reference(snap *cluster.Snapshot, n *cluster.Node) string {
	name := nodeName(n)
	for other := range snap.Nodes() {
		if other.ID != n.ID && nodeName(other) == name {
			return n.ID
		}
	}
	return name
}

// start is what to do about a manager that does not answer. One that was restarted is silent too while it is locked, which nobody but
// itself knows.
func start(snap *cluster.Snapshot) string {
	if c := snap.Cluster(); c != nil && c.Spec.EncryptionConfig.AutoLockManagers {
		return startMachine + " (if that runs, the manager may be locked, and waits for 'miniswarm unlock' there)"
	}
	return startMachine
}

// checkQuorum counts managers, and how many of them may be lost.
func checkQuorum(st raftstore.Status, snap *cluster.Snapshot) []doctor.Finding {
	const check = "quorum"
	var out []doctor.Finding
	voters, heard := 0, 0
	for _, m := range st.Members {
		if m.Learner {
			out = append(out, doctor.Bad(check, "wait; it becomes a full member by itself. See its log if it does not", "manager %s has yet to catch up", m.Addr))
			continue
		}
		voters++
		if st.Reachable[m.RaftID] {
			heard++
			continue
		}
		name, ref := m.NodeID, m.NodeID
		if n := snap.Node(m.NodeID); n != nil {
			name, ref = nodeName(n), reference(snap, n)
		}
		out = append(out, doctor.Broken(check, start(snap)+" and see that "+m.Addr+" (TCP) is open; if it is gone for good, 'miniswarm node demote "+ref+"' and 'miniswarm node rm --force "+ref+"', then join another manager",
			"the leader does not hear from manager %s (%s)", name, m.Addr))
	}
	majority := voters/2 + 1
	spare := heard - majority
	says := fmt.Sprintf("%d of %d managers answer, %d are needed, %d more may be lost", heard, voters, majority, max(spare, 0))
	switch nodes := snap.Len(cluster.KindNode); {
	case voters == 1 && nodes >= enough:
		out = append(out, doctor.Bad(check, "'miniswarm node promote' two of the workers, or join two managers ('miniswarm token manager' tells how)",
			"the only manager of %d nodes: when it is lost, nothing can be changed until it is back", nodes))
	case voters == 1:
		out = append(out, doctor.Good(check, "one manager: when it is lost, nothing can be changed until it is back. 'miniswarm token manager' tells how to add two"))
	case heard < voters && spare <= 0:
		out = append(out, doctor.Broken(check, "bring the missing managers back before anything else: with one more lost nothing can be changed any more", "%s", says))
	case voters%2 == 0:
		out = append(out, doctor.Bad(check, "add a manager or take one away: an even number bears no more losses than one less", "%s", says))
	default:
		out = append(out, doctor.Good(check, "%s", says))
	}
	return out
}

func checkNodes(snap *cluster.Snapshot) []doctor.Finding {
	const check = "nodes"
	var out []doctor.Finding
	ready, drained := 0, 0
	for n := range snap.Nodes() {
		switch {
		case n.Status.State == swarm.NodeStateReady:
			ready++
		case n.Spec.Availability == swarm.NodeAvailabilityDrain:
			out = append(out, doctor.Bad(check, "'miniswarm node rm "+reference(snap, n)+"' if it is not to come back", "%s is drained and %s: %s", nodeName(n), n.Status.State, n.Status.Message))
		default:
			ref := reference(snap, n)
			up, remove := startMachine, "'miniswarm node rm --force "+ref+"'"
			if n.Spec.Role == swarm.NodeRoleManager {
				up = start(snap)
				remove = "'miniswarm node demote " + ref + "' and " + remove
			}
			out = append(out, doctor.Broken(check, up+" and see that it reaches the managers; "+remove+" if it is gone for good",
				"%s (%s) is %s: %s", nodeName(n), n.Status.Addr, n.Status.State, n.Status.Message))
		}
		if n.Spec.Availability != swarm.NodeAvailabilityActive {
			drained++
		}
	}
	return append(out, doctor.Good(check, "%d of %d are ready, %d are paused or drained", ready, snap.Len(cluster.KindNode), drained))
}

// checkRotation names the nodes that a rotation of the root CA waits for. One that has just begun is no trouble.
func checkRotation(snap *cluster.Snapshot, now time.Time) []doctor.Finding {
	const check = "root rotation"
	c := snap.Cluster()
	if c == nil || c.Rotation == nil {
		return nil
	}
	var waiting []string
	for _, id := range identity.Outstanding(snap) {
		n := snap.Node(id)
		waiting = append(waiting, fmt.Sprintf("%s (%s)", reference(snap, n), n.Status.State))
	}
	slices.Sort(waiting)
	if len(waiting) == 0 || now.Sub(c.UpdatedAt) < starting {
		return []doctor.Finding{doctor.Good(check, "the root CA rotates, %d nodes have yet to renew their certificates", len(waiting))}
	}
	return []doctor.Finding{doctor.Bad(check, "bring them back, or 'miniswarm node rm' those that are gone for good (a manager is demoted first)",
		"the rotation of the root CA waits for %s", strings.Join(waiting, ", "))}
}

// checkExternalCAs tells of external CAs that do not answer, and names the nodes whose promotion waits for that. All others go on as
// they are, so that nothing else shows it.
func checkExternalCAs(probes []identity.Probe, snap *cluster.Snapshot, members []protocol.Member) []doctor.Finding {
	const check = "external CA"
	var out []doctor.Finding
	answering := 0
	for _, p := range probes {
		if p.Err == nil {
			answering++
			out = append(out, doctor.Good(check, "%s answers", p.URL))
		}
	}
	if answering == len(probes) {
		return out
	}
	says := "another signs in its place"
	if answering == 0 {
		says = "no node can join, renew its certificate or change its role"
		if waiting := unpromoted(snap, members); len(waiting) > 0 {
			says += "; " + strings.Join(waiting, ", ") + " cannot become a manager until it answers"
		}
	}
	for _, p := range probes {
		switch cure := "bring it back; if it is gone for good see docs/operations.md, An external CA"; {
		case p.Err == nil:
		case answering > 0:
			out = append(out, doctor.Bad(check, cure, "external CA %s does not answer: %v; %s", p.URL, p.Err, says))
		default:
			out = append(out, doctor.Broken(check, cure, "external CA %s does not answer: %v; %s", p.URL, p.Err, says))
		}
	}
	return out
}

// unpromoted names the nodes that are to be managers, could be, and are not.
func unpromoted(snap *cluster.Snapshot, members []protocol.Member) (names []string) {
	for n := range snap.Nodes() {
		member := slices.ContainsFunc(members, func(m protocol.Member) bool { return m.NodeID == n.ID })
		if n.Spec.Role == swarm.NodeRoleManager && n.Status.State == swarm.NodeStateReady && !member {
			names = append(names, nodeName(n))
		}
	}
	slices.Sort(names)
	return names
}

// checkVersions compares what the nodes said they run.
func checkVersions(reports []doctor.Report) []doctor.Finding {
	count := map[string]int{}
	for _, r := range reports {
		count[r.Version]++
	}
	if len(count) < 2 {
		return nil
	}
	var parts []string
	for v, n := range count {
		parts = append(parts, fmt.Sprintf("%s on %d", v, n))
	}
	slices.Sort(parts)
	return []doctor.Finding{doctor.Bad("versions", "bring all nodes to one version: docs/operations.md, Upgrading", "the nodes run different versions: %s", strings.Join(parts, ", "))}
}

// checkServices finds those that are not as they are declared.
func checkServices(snap *cluster.Snapshot, now time.Time) []doctor.Finding {
	const check = "services"
	var paused, short []doctor.Finding
	total := 0
	for s := range snap.Services() {
		total++
		name := s.Spec.Name
		if u := s.UpdateStatus; u != nil {
			switch u.State {
			case swarm.UpdateStatePaused:
				paused = append(paused, doctor.Bad(check, "'miniswarm service ps "+name+"' shows why; then 'miniswarm service update' with what cures it, or 'miniswarm service rollback "+name+"'", "the update of %s is paused: %s", name, u.Message))
			case swarm.UpdateStateRollbackPaused:
				paused = append(paused, doctor.Bad(check, "'miniswarm service ps "+name+"' shows why; then 'miniswarm service update' with what cures it", "the rollback of %s is paused: %s", name, u.Message))
			}
		}
		if f, ok := checkService(snap, s, now); !ok {
			short = append(short, f)
		}
	}
	out := slices.Concat(first(paused), first(short))
	if len(out) == 0 {
		return []doctor.Finding{doctor.Good(check, "all %d run as declared", total)}
	}
	return out
}

// checkService compares what runs with what is wanted. Jobs end, and are nobody's worry.
func checkService(snap *cluster.Snapshot, s *cluster.Service, now time.Time) (doctor.Finding, bool) {
	if s.Spec.Mode.ReplicatedJob != nil || s.Spec.Mode.GlobalJob != nil {
		return doctor.Finding{}, true
	}
	running, waiting := 0, 0
	reasons := map[string]bool{}
	for t := range snap.TasksOfService(s.ID) {
		switch {
		case !t.Wanted():
		case t.Status.State == swarm.TaskStateRunning:
			running++
		case now.Sub(t.CreatedAt) > starting || t.Status.Err != "":
			waiting++
			if t.Status.Err != "" {
				reasons[t.Status.Err] = true
			}
		default:
			return doctor.Finding{}, true // on its way
		}
	}
	want := running + waiting
	if r := s.Spec.Mode.Replicated; r != nil && r.Replicas != nil {
		want = int(*r.Replicas)
	}
	if running >= want {
		return doctor.Finding{}, true
	}
	says := fmt.Sprintf("%s: %d of %d tasks run", s.Spec.Name, running, want)
	for r := range reasons {
		says += "; " + r
		break
	}
	return doctor.Bad("services", "'miniswarm service explain "+s.Spec.Name+"' and 'miniswarm service ps "+s.Spec.Name+"' say why", "%s", says), false
}

// first keeps a list of findings of one kind short.
func first(all []doctor.Finding) []doctor.Finding {
	if len(all) <= named {
		return all
	}
	rest := len(all) - named
	return append(all[:named:named], doctor.Bad(all[0].Check, "see 'miniswarm service ls'", "and %d more", rest))
}
