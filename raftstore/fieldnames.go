package raftstore

// The numbers of fields: 0 ends a struct, 1 says that a name follows, others count through fieldNames.
const (
	namedField  = 1
	firstNumber = 2
)

// fieldNames gives numbers to the names of fields in the log and in snapshots, so that they need not be written out. The numbers
// are for ever: names are only appended, never moved or taken away. Fields that are not in the list work as well, only
// take more room; an older miniswarm that meets a number it does not know says so and stops.
var fieldNames = []string{
	"Task", "SpecVersion", "ServiceAnnotations", "Endpoint", "RegistryAuth", "StartAfter", "Replaces", "AppliedAt",
	"DesiredState", "Status", "NodeID", "NetworksAttachments", "GenericResources", "Description", "Role",
	"DataAddr", "Attachments", "RaftID", "ManagerAddr", "ClearManager", "Service", "PreviousSpecVersion",
	"PreviousRegistryAuth", "Node", "Network", "VNI", "PendingDelete", "ClusterInfo", "JoinTokens", "RootCA",
	"RootCAKey", "Removed", "UnlockKeys", "Secret", "Config", "ID", "Meta", "Annotations", "Spec", "ServiceID",
	"Slot", "JobIteration", "Volumes", "Index", "Name", "Labels", "PreviousSpec", "UpdateStatus", "ServiceStatus",
	"JobStatus", "ManagerStatus", "DriverState", "IPAMOptions", "TLSInfo", "RootRotationInProgress", "DefaultAddrPool",
	"SubnetSize", "DataPathPort", "Worker", "Manager", "Version", "CreatedAt", "UpdatedAt", "ContainerSpec",
	"PluginSpec", "NetworkAttachmentSpec", "Resources", "RestartPolicy", "Placement", "Networks", "LogDriver",
	"ForceUpdate", "Runtime", "Timestamp", "State", "Message", "Err", "ContainerStatus", "PortStatus", "Ports",
	"VirtualIPs", "Addresses", "NamedResourceSpec", "DiscreteResourceSpec", "Addr", "Hostname", "Platform",
	"Engine", "CSIInfo", "TaskTemplate", "Mode", "UpdateConfig", "RollbackConfig", "EndpointSpec", "Availability",
	"DriverConfiguration", "IPv6Enabled", "Internal", "Attachable", "Ingress", "ConfigFrom", "Scope", "Options",
	"Orchestration", "Raft", "Dispatcher", "CAConfig", "TaskDefaults", "EncryptionConfig", "TrustRoot",
	"CertIssuerSubject", "CertIssuerPublicKey", "Data", "Driver", "Templating", "Source", "Target", "Architecture",
	"OS", "NanoCPUs", "MemoryBytes", "EngineVersion", "Plugins", "Replicated", "Global", "ReplicatedJob",
	"GlobalJob", "StartedAt", "CompletedAt", "RunningTasks", "DesiredTasks", "CompletedTasks", "LastExecution",
	"Leader", "Reachability", "Configs", "TaskHistoryRetentionLimit", "SnapshotInterval", "KeepOldSnapshots",
	"LogEntriesForSlowFollowers", "ElectionTick", "HeartbeatTick", "HeartbeatPeriod", "NodeCertExpiry",
	"ExternalCAs", "SigningCACert", "SigningCAKey", "ForceRotate", "AutoLockManagers", "Image", "Command",
	"Args", "Env", "Dir", "User", "Groups", "Privileges", "Init", "StopSignal", "TTY", "OpenStdin", "ReadOnly",
	"Mounts", "StopGracePeriod", "Healthcheck", "Hosts", "DNSConfig", "Secrets", "Isolation", "Sysctls",
	"CapabilityAdd", "CapabilityDrop", "Ulimits", "OomScoreAdj", "Remote", "Disabled", "ContainerID", "Limits",
	"Reservations", "Condition", "Delay", "MaxAttempts", "Window", "Constraints", "Preferences", "MaxReplicas",
	"Platforms", "Aliases", "DriverOpts", "PID", "ExitCode", "Protocol", "TargetPort", "PublishedPort",
	"PublishMode", "NetworkID", "Kind", "Value", "PluginName", "MaxVolumesPerNode", "AccessibleTopology",
	"Parallelism", "FailureAction", "Monitor", "MaxFailureRatio", "Order", "Type", "Replicas", "MaxConcurrent",
	"TotalCompletions", "Subnet", "Range", "Gateway", "CredentialSpec", "SELinuxContext", "Seccomp", "AppArmor",
	"NoNewPrivileges", "Consistency", "BindOptions", "VolumeOptions", "ImageOptions", "TmpfsOptions", "ClusterOptions",
	"Test", "Interval", "Timeout", "StartPeriod", "StartInterval", "Retries", "Nameservers", "Search", "Pids",
	"Spread", "Segments", "URL", "CACert", "File", "SecretID", "SecretName", "ConfigID", "ConfigName", "Hard",
	"Soft", "Registry", "Disable", "Level", "Profile", "Propagation", "NonRecursive", "CreateMountpoint",
	"ReadOnlyNonRecursive", "ReadOnlyForceRecursive", "NoCopy", "Subpath", "DriverConfig", "SizeBytes",
	"SpreadDescriptor", "UID", "GID", "Rotation", "LastForcedRotation", "CrossSigned",
}

var fieldNumbers = func() map[string]uint64 {
	numbers := make(map[string]uint64, len(fieldNames))
	for i, name := range fieldNames {
		numbers[name] = uint64(i) + firstNumber
	}
	return numbers
}()
