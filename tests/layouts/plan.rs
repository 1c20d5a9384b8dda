//! The tasks of a rail: who exchanges with whom, and that a turn is a whole layer.

use super::support::{Layout, Places, small_shape};
use rally::graph::kinds::KindRegistry;
use rally::graph::plan::{TaskRole, TaskTable, TaskTemplate};
use rally::graph::stage_graph::StageGraph;

fn table(rail: bool) -> TaskTable {
    table_of(Places { a: vec![2, 2], f: vec![2], expert: [2, 1, 1], dense: [2, 1], rail, ..Places::default() })
}

fn table_of(places: Places) -> TaskTable {
    let spec = Layout { places: Some(places), ..Layout::default() }.spec();
    TaskTable::new(&StageGraph::build(&spec, &small_shape(), KindRegistry::shared()).expect("the graph unrolls"))
}

#[test]
fn an_ffn_lane_has_one_turn_a_layer_on_rails_as_well() {
    use TaskRole::{Compute, Exchange, Receive, Send};
    let broadcast = [Receive, Compute, Send];
    let railed = [Exchange, Receive, Compute, Exchange, Send];
    for (rail, want) in [(false, &broadcast[..]), (true, &railed[..])] {
        let table = table(rail);
        let lane = table.lanes.iter().position(|lane| lane.name == "f0.1").expect("the device has tasks");
        let turns = table.segments(lane);
        assert_eq!(turns.len(), small_shape().layers.len());
        for turn in turns {
            assert_eq!(turn.iter().map(|task| table.tasks[*task].role).collect::<Vec<_>>(), want);
        }
    }
}

#[test]
fn a_device_talks_to_its_rail_and_its_group_alone() {
    let table = table(true);
    // Devices in file order: a0.0, a0.1, a1.0, a1.1, f0.0, f0.1.
    let befores = |device: usize, role: TaskRole| -> Vec<Vec<usize>> {
        let tasks = table.tasks.iter().filter(|task| (task.device, task.role) == (device, role));
        tasks.map(|task| task.after.iter().map(|before| table.tasks[*before].device).collect()).collect()
    };
    // Of every layer: u comes along the rail, y goes back along it; in between the group exchanges.
    assert_eq!(befores(5, TaskRole::Exchange)[..2], [vec![1, 3], vec![5]]);
    assert_eq!(befores(5, TaskRole::Receive)[0], [4, 5]);
    assert_eq!(befores(5, TaskRole::Send)[0], [4, 5]);
    assert_eq!(befores(3, TaskRole::Receive)[0], [5]);
}

#[test]
fn a_stage_whose_devices_exchange_rows_stays_one_turn() {
    use TaskRole::{Compute, Exchange, Receive, Send};
    let placement = Some(vec![vec![0, 1, 2], vec![2, 3]]);
    let places = Places { a: vec![2, 2], f: vec![2], expert: [2, 1, 1], dense: [2, 1], ..Places::default() };
    let table = table_of(Places { placement, o_proj: 2, ..places });
    let roles = |name: &str| -> Vec<Vec<TaskRole>> {
        let lane = table.lanes.iter().position(|lane| lane.name == name).expect("the device has tasks");
        let turns = table.segments(lane).into_iter();
        turns.map(|turn| turn.iter().map(|task| table.tasks[*task].role).collect()).collect()
    };
    // A dense layer, and one whose expert 2 is on both devices.
    assert_eq!(roles("f0.1"), [&[Receive, Compute, Send][..], &[Receive, Compute, Exchange, Send]]);
    // embed, attention in three parts, send; receive, combine, attention, router, send; receive, combine, sampling.
    let first = [Compute, Compute, Exchange, Exchange, Send];
    let second = [Receive, Compute, Compute, Exchange, Exchange, Compute, Send];
    assert_eq!(roles("a1.0"), [&first[..], &second, &[Receive, Compute, Compute]]);
    // Slices are exchanged inside a group, never across.
    let parts = table.tasks.iter().filter(|task| task.part > 0 && task.device == 3);
    let befores = |task: &TaskTemplate| task.after.iter().map(|before| table.tasks[*before].device).collect::<Vec<_>>();
    assert!(parts.map(befores).all(|devices| devices == [2, 3]));
}
