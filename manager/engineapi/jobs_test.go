package engineapi

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// aJob is a replicated job in its second run.
func aJob(id, name string, total, concurrent uint64) *cluster.Service {
	svc := aService(id, name, 0)
	svc.Spec.Mode = swarm.ServiceMode{ReplicatedJob: &swarm.ReplicatedJob{TotalCompletions: &total, MaxConcurrent: &concurrent}}
	svc.JobStatus = &swarm.JobStatus{JobIteration: swarm.Version{Index: 1}, LastExecution: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	return svc
}

// aGlobalJob is a global job in its second run.
func aGlobalJob(id, name string) *cluster.Service {
	svc := aJob(id, name, 0, 0)
	svc.Spec.Mode = swarm.ServiceMode{GlobalJob: &swarm.GlobalJob{}}
	return svc
}

// ofJob is a task of a job's present run.
func ofJob(id string, svc *cluster.Service, slot int, nodeID string, state swarm.TaskState) *cluster.Task {
	t := aTask(id, svc, slot, nodeID, state)
	t.JobIteration, t.DesiredState = &swarm.Version{Index: svc.JobStatus.JobIteration.Index}, swarm.TaskStateComplete
	return t
}

// givenUp is a task that is not wanted any more.
func givenUp(t *cluster.Task) *cluster.Task {
	t.DesiredState = swarm.TaskStateShutdown
	return t
}

// limited has a service's tasks tried again once.
func limited(svc *cluster.Service) *cluster.Service {
	once := uint64(1)
	svc.Spec.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Condition: swarm.RestartPolicyConditionOnFailure, MaxAttempts: &once}
	return svc
}

func TestJobsRunWithEveryChange(t *testing.T) {
	w := newWorld(t)
	w.control.put(t, aCluster()...)
	spec := serviceSpec("job")
	spec.Mode = swarm.ServiceMode{ReplicatedJob: &swarm.ReplicatedJob{}}
	id := must[swarm.ServiceCreateResponse](w, 201, "POST", "/services/create", spec).ID
	get := func() swarm.Service { return must[swarm.Service](w, 200, "GET", "/services/"+id, nil) }
	svc := get()
	if m := svc.Spec.Mode.ReplicatedJob; *m.MaxConcurrent != 1 || *m.TotalCompletions != 1 {
		t.Errorf("defaults: %d of %d", *m.MaxConcurrent, *m.TotalCompletions)
	}
	if svc.JobStatus == nil || svc.JobStatus.JobIteration.Index != 0 || time.Since(svc.JobStatus.LastExecution) > time.Minute {
		t.Fatalf("created: %+v", svc.JobStatus)
	}
	first := svc.JobStatus.LastExecution
	update := func(query string, spec swarm.ServiceSpec) {
		t.Helper()
		must[swarm.ServiceUpdateResponse](w, 200, "POST", fmt.Sprintf("/services/%s/update?version=%d%s", id, get().Version.Index, query), spec)
	}
	three := uint64(3)
	spec.Mode.ReplicatedJob = &swarm.ReplicatedJob{MaxConcurrent: &three}
	update("", spec)
	if svc = get(); svc.JobStatus.JobIteration.Index != 1 || !svc.JobStatus.LastExecution.After(first) || *svc.Spec.Mode.ReplicatedJob.TotalCompletions != 3 {
		t.Errorf("updated: %+v %+v", svc.JobStatus, svc.Spec.Mode.ReplicatedJob)
	}
	update("", spec) // nothing is different
	update("&rollback=previous", spec)
	over := *w.control.snapshot().Service(id)
	over.UpdateStatus = &swarm.UpdateStatus{State: swarm.UpdateStatePaused, Message: "the job has ended"}
	w.control.put(t, &over)
	update("&rollback=previous", spec)
	if svc = get(); svc.JobStatus.JobIteration.Index != 4 || svc.UpdateStatus != nil {
		t.Errorf("rolled back: %+v, %+v", svc.JobStatus, svc.UpdateStatus)
	}
	spec.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1}
	path := fmt.Sprintf("/services/%s/update?version=%d", id, svc.Version.Index)
	w.refused("POST", path, spec, 400, invalid+"Jobs may not have an update config")
	spec.UpdateConfig = nil
	spec.Mode = swarm.ServiceMode{GlobalJob: &swarm.GlobalJob{}}
	w.refused("POST", path, spec, 501, "rpc error: code = Unimplemented desc = service mode change is not allowed")
	if again := get(); again.JobStatus.JobIteration.Index != 4 {
		t.Errorf("what was refused ran the job: %+v", again.JobStatus)
	}
	// Clients older than jobs cannot ask for one.
	spec.Name = "old"
	if a := w.do("POST", "/v1.40/services/create", spec); a.status != 201 {
		t.Errorf("old client: %d %s", a.status, a.body)
	}
	if old := w.control.snapshot().ServiceNamed("old"); old.Spec.Mode.Replicated == nil || old.JobStatus != nil {
		t.Errorf("old client: %+v", old.Spec.Mode)
	}
}

func TestJobStatus(t *testing.T) {
	w := newWorld(t)
	job, scan := limited(aJob("job1", "job", 7, 3)), limited(aGlobalJob("scan1", "scan"))
	down := aNode("node3", "vm3")
	down.Status.State = swarm.NodeStateDown
	lastRun := aTask("old", job, 6, "node1", swarm.TaskStateComplete)
	lastRun.JobIteration = &swarm.Version{}
	w.control.put(t, aNode("node1", "vm1"), aNode("node2", "vm2"), down, aNode("node4", "vm4"), aNode("node5", "vm5"), job, scan, lastRun,
		ofJob("t0", job, 0, "node1", swarm.TaskStateComplete),
		// Done twice: its node was believed lost.
		givenUp(ofJob("t1", job, 1, "node1", swarm.TaskStateComplete)), ofJob("t1b", job, 1, "node2", swarm.TaskStateComplete),
		ofJob("t2", job, 2, "node1", swarm.TaskStateRunning),
		givenUp(ofJob("t3", job, 3, "node1", swarm.TaskStateFailed)),
		givenUp(ofJob("t4", job, 4, "node3", swarm.TaskStateRunning)), ofJob("t4b", job, 4, "", swarm.TaskStatePending),
		ofJob("s1", scan, 0, "node1", swarm.TaskStateComplete), ofJob("s2", scan, 0, "node2", swarm.TaskStateRunning), ofJob("s3", scan, 0, "node3", swarm.TaskStateRunning),
		givenUp(ofJob("s4", scan, 0, "node4", swarm.TaskStateFailed)),
		// Failed once, and its node is paused.
		givenUp(ofJob("s5", scan, 0, "node5", swarm.TaskStateFailed)))
	w.control.now = w.control.now.Add(time.Minute)
	w.control.put(t, givenUp(ofJob("t3b", job, 3, "node2", swarm.TaskStateFailed)), givenUp(ofJob("s4b", scan, 0, "node4", swarm.TaskStateRejected)))
	var status []string
	for _, s := range must[[]swarm.Service](w, 200, "GET", "/services?status=true", nil) {
		status = append(status, fmt.Sprintf("%s %d/%d %d", s.Spec.Name, s.ServiceStatus.RunningTasks, s.ServiceStatus.DesiredTasks, s.ServiceStatus.CompletedTasks))
	}
	if got := strings.Join(status, ", "); got != "job 1/3 2, scan 1/2 1" {
		t.Errorf("status: %s", got)
	}
	for _, c := range []struct{ query, want string }{{filtersOf("mode", "replicated-job"), "job1"}, {filtersOf("mode", "global-job"), "scan1"}, {filtersOf("mode", "global"), ""}} {
		var ids []string
		for _, s := range must[[]swarm.Service](w, 200, "GET", "/services?"+c.query, nil) {
			ids = append(ids, s.ID)
		}
		if got := strings.Join(ids, " "); got != c.want {
			t.Errorf("%s: %q, want %q", c.query, got, c.want)
		}
	}
	// Progress bars see neither other runs nor what was given up on a node that is down.
	var current []string
	for _, task := range must[[]swarm.Task](w, 200, "GET", "/tasks?"+filtersOf("service", "job", "_up-to-date", "true"), nil) {
		current = append(current, task.ID)
	}
	if got := strings.Join(current, " "); got != "t0 t1 t1b t2 t3 t3b t4b" {
		t.Errorf("up to date: %s", got)
	}
	for _, c := range []struct {
		service string
		texts   []string
	}{
		{"job", []string{"job iteration 1, begun 2026-01-02T03:04:05Z: 2 of 7 completed, 2 under way, 3 at a time, 1 not tried again", "task t3b (job.3): failed, wanted shutdown, on vm2",
			"task t2 (job.2): running, wanted complete, on vm1"}},
		{"scan", []string{"completed on 1 nodes, under way on 2, 1 not tried again", "task s4b (scan.node4): rejected, wanted shutdown, on vm4"}},
	} {
		e := must[ServiceExplanation](w, 200, "GET", "/miniswarm/services/"+c.service+"/explain", nil)
		for _, text := range c.texts {
			if !strings.Contains(e.Text, text) {
				t.Errorf("%q is not in:\n%s", text, e.Text)
			}
		}
		if e.Next != nil {
			t.Errorf("%s: a replica more", c.service)
		}
		if short := must[ServiceExplanation](w, 200, "GET", "/miniswarm/services/"+c.service+"/explain?compact=1", nil); !strings.Contains(short.Text, c.texts[0]) {
			t.Errorf("%q is not in:\n%s", c.texts[0], short.Text)
		}
	}
}

func TestExplainCutsWhatIsNotTriedAgain(t *testing.T) {
	w := newWorld(t)
	job := limited(aJob("job1", "job", 100, 3))
	job.Spec.TaskTemplate.RestartPolicy.Condition = swarm.RestartPolicyConditionNone
	w.control.put(t, aNode("node1", "vm1"), job)
	for i := range explainLimit + 2 {
		w.control.put(t, givenUp(ofJob(fmt.Sprintf("t%d", i), job, i, "node1", swarm.TaskStateFailed)))
	}
	if text := must[ServiceExplanation](w, 200, "GET", "/miniswarm/services/job/explain", nil).Text; !strings.Contains(text, "22 not tried again") || !strings.Contains(text, "and 2 more that are not tried again") {
		t.Errorf("\n%s", text)
	}
}

func TestDockerCommandJobs(t *testing.T) {
	c := newCLI(t)
	c.ok("service", "create", "--detach", "--no-resolve-image", "--name", "job", "--mode", "replicated-job", "--replicas", "5", "--max-concurrent", "2", "app:1")
	c.ok("service", "create", "--detach", "--no-resolve-image", "--name", "scan", "--mode", "global-job", "app:1")
	c.control.orchestrate(t)
	c.shows(c.ok("service", "ls"), "job replicated job 0/2 (0/5 completed) app:1", "scan global job 0/2 (0/2 completed) app:1")
	c.shows(c.ok("service", "inspect", "job"), `"ReplicatedJob": { "MaxConcurrent": 2, "TotalCompletions": 5 }`, `"JobStatus": { "JobIteration": {}, "LastExecution": "20`)
	c.ok("service", "scale", "--detach", "job=7")
	c.ok("service", "update", "--detach", "--image", "app:2", "--no-resolve-image", "job")
	c.control.orchestrate(t)
	c.shows(c.ok("service", "inspect", "job"), `"MaxConcurrent": 2, "TotalCompletions": 7`, `"JobStatus": { "JobIteration": { "Index": 2 }`)
	c.fails("scale can only be used with replicated or replicated-job mode", "service", "scale", "--detach", "scan=3")
	c.fails("update and rollback configuration is not supported for jobs", "service", "create", "--detach", "--mode", "global-job", "--update-delay", "1s", "app:1")
	c.fails("replicas can only be used with replicated mode", "service", "update", "--detach", "--replicas", "3", "job")
	c.fails("Jobs may not have an update config", "service", "update", "--detach", "--update-delay", "1s", "job")
}
