package io.github.edgeqkv.demo

import android.app.Activity
import android.app.AlertDialog
import android.content.ActivityNotFoundException
import android.content.Intent
import android.view.View
import android.widget.Button
import android.widget.LinearLayout
import android.widget.ProgressBar
import android.widget.TextView

class ModelsScreen(
    private val activity: Activity,
    view: View,
    private val models: ModelsModel,
    private val writeWith: (InstalledModel) -> Unit,
) : Screen(view, models) {
    private val list = view.part<LinearLayout>(R.id.models_list)
    private val problem = view.part<TextView>(R.id.models_problem)
    private val busy = view.part<View>(R.id.models_busy)
    private val busyText = view.part<TextView>(R.id.models_busy_text)
    private val progress = view.part<ProgressBar>(R.id.models_progress)
    private val cancel = view.part<Button>(R.id.models_cancel)
    private val buttons = listOf(view.part<Button>(R.id.import_folder), view.part<Button>(R.id.import_zip))
    private var listed: List<InstalledModel>? = null
    private var question: AlertDialog? = null

    init {
        cancel.setOnClickListener { models.cancel() }
        buttons[0].setOnClickListener { pick(Intent(Intent.ACTION_OPEN_DOCUMENT_TREE), PICK_FOLDER) }
        buttons[1].setOnClickListener {
            val intent = Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType("*/*")
            pick(intent.putExtra(Intent.EXTRA_MIME_TYPES, ZIP_TYPES), PICK_ZIP)
        }
    }

    override fun show() {
        val state = models.state
        if (state.models != listed) list(state.models)
        problem.showIf(state.problem != null)
        if (problem.text.toString() != state.problem.orEmpty()) problem.text = state.problem
        val import = state.import
        busy.showIf(state.preparing || import != null)
        cancel.showIf(import != null)
        buttons.forEach { it.isEnabled = import == null && !state.preparing }
        val what = if (import == null) activity.getString(R.string.preparing) else activity.getString(R.string.importing, import.name)
        if (busyText.text.toString() != what) busyText.text = what // or it would be read aloud again
        val total = import?.total
        progress.isIndeterminate = total == null
        if (import != null && total != null && total > 0) progress.progress = (import.done * 1000 / total).toInt()
    }

    override fun stop() {
        question?.dismiss() // asked again by who still wants it
        super.stop()
    }

    private fun list(models: List<InstalledModel>) {
        listed = models
        list.removeAllViews()
        models.forEach { model ->
            val card = activity.layoutInflater.inflate(R.layout.model_card, list, false)
            card.part<TextView>(R.id.card_name).text =
                if (model.builtIn) "${model.name} (${activity.getString(R.string.built_in)})" else model.name
            card.part<TextView>(R.id.card_facts).run {
                text = model.facts
                showIf(model.problem == null)
            }
            card.part<TextView>(R.id.card_problem).run {
                text = model.problem
                showIf(model.problem != null)
            }
            card.part<Button>(R.id.card_write).run {
                contentDescription = activity.getString(R.string.write_with_described, model.name)
                setOnClickListener { writeWith(model) }
                showIf(model.problem == null)
            }
            card.part<Button>(R.id.card_delete).run {
                contentDescription = activity.getString(R.string.delete_described, model.name)
                setOnClickListener { askToDelete(model) }
                showIf(!model.builtIn)
            }
            list.addView(card)
        }
    }

    private fun askToDelete(model: InstalledModel) {
        question = AlertDialog.Builder(activity)
            .setMessage(activity.getString(R.string.delete_question, model.name))
            .setPositiveButton(R.string.delete_yes) { _, _ ->
                (activity.application as DemoApplication).write.forget(model.key)
                models.delete(model)
            }
            .setNegativeButton(R.string.keep, null)
            .show()
    }

    private fun pick(intent: Intent, request: Int) = try {
        activity.startActivityForResult(intent, request)
    } catch (error: ActivityNotFoundException) {
        problem.text = activity.getString(R.string.no_picker)
        problem.showIf(true)
    }

    companion object {
        const val PICK_FOLDER = 1
        const val PICK_ZIP = 2
        private val ZIP_TYPES = arrayOf("application/zip", "application/x-zip-compressed", "application/octet-stream")
    }
}
