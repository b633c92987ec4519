package scheduler

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"github.com/miniswarm/miniswarm/cluster"
)

// How much of a group's decision the small form keeps.
const (
	maxWinners   = 8
	maxRunnersUp = 3
	// lookAhead bounds how many nodes are looked at only to name runners-up.
	lookAhead = 16
)

// Decision is the reason of a placement. The small form, which every [Result] carries, is cheap and made on the way;
// [Accounts.Explain] computes the full form, which has Table, from the books of the moment. Both can be stored as JSON.
//
// There is no seed in it, because chance has no part in a decision: Index, the time and the task reproduce it.
type Decision struct {
	ServiceID string `json:"service_id,omitempty"`
	Service   string `json:"service,omitempty"`
	// TaskID is the task that Explain was asked about, or the group's representative.
	TaskID string `json:"task_id,omitempty"`
	// Index is the log index of the cluster's state the decision was made from, see SetIndex.
	Index uint64    `json:"index,omitempty"`
	Time  time.Time `json:"time"`
	// Wanted is the number of tasks to place, Placed how many found a node.
	Wanted int `json:"wanted"`
	Placed int `json:"placed"`
	// Nodes is the number of nodes there are.
	Nodes int `json:"nodes"`
	// Examined is how many of those that pass the filters on the node's own description were looked at before all
	// tasks were placed. The others would have ranked behind.
	Examined int `json:"examined"`
	// Rejected counts nodes by the filter that ruled them out. In the small form it knows all nodes for the filters
	// ready and those from plugin to gpus, and the examined ones for the others.
	Rejected []Rejection `json:"rejected,omitempty"`
	// Winners are the chosen nodes, the first at most 8 of WinnerNodes.
	Winners     []Choice `json:"winners,omitempty"`
	WinnerNodes int      `json:"winner_nodes"`
	// RunnersUp are the nodes that would have come next, as far as they were seen.
	RunnersUp []Choice `json:"runners_up,omitempty"`
	// Explanation is Swarm's text for tasks that fit nowhere.
	Explanation string `json:"explanation,omitempty"`

	// CurrentNode is, in the full form, the node the task already is on. The table shows the cluster without it.
	CurrentNode string `json:"current_node,omitempty"`
	// Spread lists, in the full form, the descriptors of the preferences that are honoured.
	Spread []string `json:"spread,omitempty"`
	// Why says, in the full form, in words why the winner won.
	Why string `json:"why,omitempty"`
	// Table has, in the full form, every node in the order of rank, then those that do not fit by id.
	Table []NodeVerdict `json:"table,omitempty"`
}

// Rejection counts the nodes that a filter ruled out.
type Rejection struct {
	Filter Filter `json:"filter"`
	Nodes  int    `json:"nodes"`
}

// Choice is a node with what ranked it before the group was placed.
type Choice struct {
	NodeID   string `json:"node_id"`
	Hostname string `json:"hostname,omitempty"`
	// Tasks is how many tasks of the group the node got.
	Tasks int `json:"tasks,omitempty"`
	// RecentFailures are those of the service and version that count in the ranking: 0 below five.
	RecentFailures int `json:"recent_failures,omitempty"`
	// ServiceTasks and ActiveTasks are the service's and all active tasks on the node.
	ServiceTasks int `json:"service_tasks"`
	ActiveTasks  int `json:"active_tasks"`
}

// NodeVerdict is one row of the full form.
type NodeVerdict struct {
	NodeID   string `json:"node_id"`
	Hostname string `json:"hostname,omitempty"`
	Fits     bool   `json:"fits"`
	// Filters are the verdicts of all filters that the task enables, not only up to the first that fails.
	Filters []Verdict `json:"filters"`
	// RecentFailures counts failures of this service and version within five minutes; they decide from five on.
	RecentFailures int `json:"recent_failures"`
	ServiceTasks   int `json:"service_tasks"`
	ActiveTasks    int `json:"active_tasks"`
	// Rank is the node's place among those that fit, best 1; 0 if it does not fit.
	Rank int `json:"rank,omitempty"`
	// Branch are the values of the spread preferences.
	Branch []string `json:"branch,omitempty"`
	Winner bool     `json:"winner,omitempty"`
}

// Lacks says what rules the node out, "" if nothing does.
func (v *NodeVerdict) Lacks() string {
	var lacks []string
	for _, f := range v.Filters {
		if !f.Passed {
			lacks = append(lacks, f.Detail)
		}
	}
	return strings.Join(lacks, "; ")
}

// Verdict is what one filter says of one node.
type Verdict struct {
	Filter Filter `json:"filter"`
	Passed bool   `json:"passed"`
	// Detail gives the numbers or values compared.
	Detail string `json:"detail"`
}

func choiceOf(c *candidate) Choice {
	ch := Choice{
		NodeID: c.node.id, Tasks: int(c.placed), RecentFailures: int(c.failures),
		ServiceTasks: int(c.service - c.placed), ActiveTasks: int(c.total - c.placed),
	}
	if c.node.obj != nil {
		ch.Hostname = c.node.obj.Description.Hostname
	}
	return ch
}

// decide writes the small form.
func (p *placement) decide(d *Decision, g Group, now time.Time) {
	d.ServiceID, d.Service, d.TaskID = g.Task.ServiceID, g.Task.ServiceAnnotations.Name, g.Task.ID
	d.Index, d.Time, d.Wanted, d.Placed, d.Nodes = p.a.index, now, g.N, len(p.placements), len(p.a.sorted())
	if !p.passed {
		d.Examined = d.Nodes
		d.Rejected = p.rejected.list()
		return
	}
	// In a tree the nodes looked at are enough; searching on in every branch would cost more than it tells.
	if r := p.runs[0]; len(p.runs) == 1 && p.view.root.leaf != nil && !r.hasAhead {
		r.ahead, r.hasAhead = r.search.next(lookAhead)
	}
	var won, next [maxWinners]*candidate
	winners, runners := won[:0], next[:0]
	ranked := len(p.runs) == 1 && p.runs[0].visits == 1 // candidates were found in the order of their ranks
	for _, r := range p.runs {
		r.each(func(c *candidate) {
			switch {
			case c.placed > 0:
				d.WinnerNodes++
				if !ranked || len(winners) < maxWinners {
					winners = keepBest(winners, c, maxWinners)
				}
			case !ranked || len(runners) < maxRunnersUp:
				runners = keepBest(runners, c, maxRunnersUp)
			}
		})
	}
	choices := make([]Choice, len(winners)+len(runners))
	for i, c := range winners {
		choices[i] = choiceOf(c)
	}
	for i, c := range runners {
		choices[len(winners)+i] = choiceOf(c)
	}
	d.Winners, d.RunnersUp = choices[:len(winners):len(winners)], choices[len(winners):]
	d.Examined = p.examined
	for f := range p.rejected {
		p.rejected[f] += p.view.failing[f]
	}
	d.Rejected = p.rejected.list()
}

// list gives the counts that are not 0.
func (c *tally) list() []Rejection {
	n := 0
	for f := filterNone + 1; f < filterCount; f++ {
		if c[f] > 0 {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	list := make([]Rejection, 0, n)
	for f := filterNone + 1; f < filterCount; f++ {
		if c[f] > 0 {
			list = append(list, Rejection{f, c[f]})
		}
	}
	return list
}

// keepBest inserts c into the k best, by how they ranked before anything was placed.
func keepBest(best []*candidate, c *candidate, k int) []*candidate {
	at := len(best)
	for at > 0 && before(c, best[at-1]) < 0 {
		at--
	}
	if at == k {
		return best
	}
	if len(best) == k {
		best = best[:k-1]
	}
	return slices.Insert(best, at, c)
}

// before ranks two candidates by what they were before the group was placed.
func before(x, y *candidate) int {
	if r := cmp.Or(int(x.failures-y.failures), int(x.service-x.placed-y.service+y.placed),
		int(x.total-x.placed-y.total+y.placed)); r != 0 {
		return r
	}
	return cmp.Compare(x.node.id, y.node.id)
}

// Explain computes the full decision for one task from the books of the moment: what every filter says of every node,
// how they rank, where the task would go and why. A task that is placed is taken off the books meanwhile, so that the
// table shows what the other tasks leave for it; CurrentNode tells where it is. Nothing stays booked.
func (a *Accounts) Explain(t *cluster.Task, now time.Time) Decision {
	current := ""
	if t.NodeID != "" {
		current = t.NodeID
	}
	if placed(t) {
		a.addTask(t, -1)
		defer a.addTask(t, 1)
	}
	bare := *t
	bare.NodeID = ""
	mark := len(a.journal.groups)
	res := a.Place(Group{Task: &bare, N: 1}, now)
	a.rollbackTo(mark)

	d := res.Decision
	d.CurrentNode = current
	dem := a.demandOf(&bare)
	d.Spread = dem.view.rules.spread
	d.Examined = len(a.sorted())
	bad := a.failures[versionOf(t)]
	fit := make([]candidate, 0, len(a.sorted()))
	count := tally{}
	rows := make(map[string]*NodeVerdict, len(a.sorted()))
	for _, nd := range a.sorted() {
		row := &NodeVerdict{
			NodeID: nd.id, Hostname: nd.obj.Description.Hostname, Filters: dem.verdicts(a, nd),
			RecentFailures: int(recentFailures(bad[nd.slot], now)),
			ServiceTasks:   int(dem.service.count(nd.slot)), ActiveTasks: int(nd.active),
			Winner: len(res.Placements) > 0 && res.Placements[0].NodeID == nd.id,
		}
		for _, s := range d.Spread {
			value, _ := label(s, nd.obj)
			row.Branch = append(row.Branch, value)
		}
		f := dem.failing(nd)
		row.Fits = f == filterNone
		if row.Fits {
			c := candidate{node: nd, service: int32(row.ServiceTasks), total: nd.active}
			if row.RecentFailures >= failureLimit {
				c.failures = int32(row.RecentFailures)
			}
			fit = append(fit, c)
		} else {
			count[f]++
		}
		rows[nd.id] = row
	}
	d.Rejected = count.list()
	slices.SortFunc(fit, func(x, y candidate) int { return x.compareFully(&y) })
	for i := range fit {
		row := rows[fit[i].node.id]
		row.Rank = i + 1
		d.Table = append(d.Table, *row)
	}
	d.RunnersUp = nil
	for i := range fit {
		if !rows[fit[i].node.id].Winner && len(d.RunnersUp) < maxRunnersUp {
			d.RunnersUp = append(d.RunnersUp, choiceOf(&fit[i]))
		}
	}
	for _, nd := range a.sorted() {
		if row := rows[nd.id]; !row.Fits {
			d.Table = append(d.Table, *row)
		}
	}
	d.Why = d.why(dem.branchTasks())
	return d
}

// branchTasks gives the service's tasks in every branch, by the path of values joined as in branchKey.
func (d *demand) branchTasks() map[string]int {
	tasks := make(map[string]int)
	d.service.each(func(slot, count int32) {
		if int(slot) >= len(d.view.where) || d.view.where[slot].leaf == nil {
			return
		}
		at := d.view.where[slot]
		n := at.leaf.nodes[at.rank].obj
		var path []string
		for _, s := range d.view.rules.spread {
			value, _ := label(s, n)
			path = append(path, value)
			tasks[branchKey(path)] += int(count)
		}
	})
	return tasks
}

func branchKey(path []string) string { return fmt.Sprintf("%q", path) }

// why says in words why the winner won.
func (d *Decision) why(branchTasks map[string]int) string {
	var winner, next *NodeVerdict
	fit := 0
	for i := range d.Table {
		row := &d.Table[i]
		if row.Fits {
			fit++
		}
		switch {
		case row.Winner:
			winner = row
		case row.Fits && next == nil:
			next = row
		}
	}
	switch {
	case winner == nil && d.Nodes == 0:
		return "there are no nodes"
	case winner == nil:
		return "no node passes all filters"
	case next == nil:
		return name(winner) + " is the only node that passes all filters"
	}
	// A preference decides before ranks do: find the level where the branches part.
	for level := range d.Spread {
		for i := range d.Table {
			row := &d.Table[i]
			if !row.Fits || row.Winner || !slices.Equal(row.Branch[:level], winner.Branch[:level]) ||
				row.Branch[level] == winner.Branch[level] {
				continue
			}
			mine, theirs := branchTasks[branchKey(winner.Branch[:level+1])], branchTasks[branchKey(row.Branch[:level+1])]
			if mine < theirs {
				return fmt.Sprintf("its branch %s %q runs %s of the service, %q runs %d; %s", d.Spread[level],
					winner.Branch[level], tasks(mine), row.Branch[level], theirs, d.inBranch(winner, level))
			}
		}
	}
	return d.overNext(winner, next)
}

// inBranch says why the winner won within its branch.
func (d *Decision) inBranch(winner *NodeVerdict, level int) string {
	for i := range d.Table {
		row := &d.Table[i]
		if row.Fits && !row.Winner && slices.Equal(row.Branch[:level+1], winner.Branch[:level+1]) {
			return "there, " + d.overNext(winner, row)
		}
	}
	return name(winner) + " is the only node there that passes all filters"
}

// overNext says why the winner is better than one other node.
func (d *Decision) overNext(winner, next *NodeVerdict) string {
	w, n := name(winner), name(next)
	limit := winner.RecentFailures >= failureLimit || next.RecentFailures >= failureLimit
	switch {
	case limit && winner.RecentFailures < next.RecentFailures:
		return fmt.Sprintf("the service failed %d times on %s in the last 5 minutes, %d times on %s",
			winner.RecentFailures, w, next.RecentFailures, n)
	case winner.ServiceTasks < next.ServiceTasks:
		return fmt.Sprintf("%s runs %s of the service, %s runs %d", w, tasks(winner.ServiceTasks), n, next.ServiceTasks)
	case winner.ServiceTasks == next.ServiceTasks && winner.ActiveTasks < next.ActiveTasks:
		return fmt.Sprintf("%s and %s run equally many tasks of the service (%d), and %s runs %s in all, %s runs %d",
			w, n, winner.ServiceTasks, w, tasks(winner.ActiveTasks), n, next.ActiveTasks)
	case winner.NodeID < next.NodeID:
		return fmt.Sprintf("%s and %s rank alike; the smaller node id decides", w, n)
	}
	return fmt.Sprintf("the preferences put %s before %s", w, n)
}

func name(v *NodeVerdict) string { return cmp.Or(v.Hostname, v.NodeID) }

func tasks(n int) string {
	if n == 1 {
		return "1 task"
	}
	return fmt.Sprintf("%d tasks", n)
}

// verdicts asks every filter that the task enables about the node.
func (d *demand) verdicts(a *Accounts, nd *node) []Verdict {
	vs := []Verdict{{FilterReady, nd.ready, fmt.Sprintf("state %s, availability %s",
		cmp.Or(nd.obj.Status.State, swarm.NodeStateUnknown), availability(nd.obj))}}
	add := func(f Filter, passed bool, detail string) { vs = append(vs, Verdict{f, passed, detail}) }
	if d.resources {
		add(d.resourceVerdict(nd))
	}
	r := &d.view.rules
	if len(r.plugins) > 0 {
		add(r.pluginVerdict(nd.obj))
	}
	if len(r.constraints) > 0 {
		add(r.constraintVerdict(nd.obj))
	}
	if len(r.platforms) > 0 {
		add(r.platformVerdict(nd.obj))
	}
	if r.dataPlane {
		add(dataPlaneVerdict(nd.obj))
	}
	vs = append(vs, r.allowanceVerdicts(nd.obj)...)
	if len(d.ports) > 0 {
		add(d.portVerdict(nd))
	}
	if d.max > 0 {
		n := int64(d.service.count(nd.slot))
		add(FilterMaxReplicas, n < d.max, fmt.Sprintf("%d of %d replicas per node", n, d.max))
	}
	return vs
}
